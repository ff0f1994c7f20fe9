"""English word lists, written for this project, from which the rule-made lexical tasks are drawn.

The lists hold common words only: the embedded model has 135M parameters, and a task whose words it
does not know measures its vocabulary and not the producer of phi. No word stands in two of the
category lists, so that "which of these is a fruit?" has one answer.
"""

VERBS = """
accept add admire admit allow answer argue arrive ask attack avoid bake become begin behave believe
bite blow borrow break breathe bring build burn buy call carry catch change chase choose clean climb
close come compare consider cook copy count cover create cross cry cut dance decide deliver deny
describe design destroy dig discover divide draw dream drink drive drop eat enjoy enter escape
examine exist expect explain fall feed feel fight fill find finish fly follow forget forgive freeze
gather give go grow guess hate hear help hide hit hold hope hunt hurry imagine improve invite join
judge jump keep kick kill know laugh lead learn leave lend like listen live look lose love make
marry measure meet move need notice obey offer open order paint pass pay plan plant play pray prefer
prepare promise protect pull push put raise reach read receive refuse remain remember remove repair
repeat reply rest return ride ring rise run save say search see sell send serve shake share shine
shoot shout show sing sink sit sleep smile speak spend stand start stay steal stop study succeed
suffer swim take talk teach tear tell thank think throw touch train travel try turn understand use
visit wait wake walk want warn wash waste watch wear win wish wonder work worry write
""".split()

# Verbs whose doer ends in -er (an actor acts, so "act" is not here).
AGENT_VERBS = """
admire announce bake bank begin believe boil borrow box break build burn buy call camp catch
challenge change charm clean climb consume dance deal defend design destroy dream drink
drive drum eat employ examine explore farm fight find follow garden give golf hate heal help hike
hunt interview jump kick kill lead learn listen lose love make manage mix move murder observe offend
own paint perform plan play print produce publish read ride roast rob rule run scan sell
sing skate sleep smoke speak swim talk teach think throw train travel use wait walk
wash watch wear weave win work write
""".split()

NOUNS = """
actor address airport album apple army artist author baby bag ball bank basket battle beach bed bell
bird boat body bomb book bottle box boy branch bridge brother brush bucket building bus business
butterfly button cage cake camera camp candle car card castle cat chair chance child church circle
city class clock cloud coat coin college colony company computer cook copy corner country cousin cow
crowd cup daughter day deer desk dictionary dish doctor dog door dream dress duck duty eagle ear egg
enemy engine error eye face factory family farm father fence field film finger fire fish flag floor
flower foot forest fork fox friend game garden gate gift girl glass goat goose guest gun half hand
hat hero hill holiday horse hospital hotel hour house idea insect island jar jewel job joke key king
kitchen knife lady lake lamp language leaf lesson letter library lie life light line lion list loaf
machine magazine man map market match meal memory message mirror model monkey month moon mother
mountain mouse museum name needle neighbor nest newspaper night nose number nurse ocean office
orange owner page painting palace paper parent party path pencil person photo piano picture pig
plane plate pocket poem poet pony potato prince prison prize problem puppy queen question rabbit
radio river road rock roof room rope rose school scientist sea season secret sheep shelf ship shirt
shoe shop sister snake soldier song spoon star station stone store story stranger street student
sword table teacher team thief ticket tiger tool tooth tower town toy train tree truck uncle
university valley victory village visitor voice wall watch week wife window wing wolf woman word
worker year zoo
""".split()

ADJECTIVES = """
angry big bitter black bold brave brief bright broad busy calm cheap clean clear clever close cloudy
cold cool crazy dark dear deep dirty dry dull dusty early easy empty fair fast fat few fine firm
flat fresh friendly full funny gentle good great green happy hard healthy heavy high hot huge
hungry kind large late lazy light lonely long loud lovely low lucky mad mean mild narrow near neat
new nice noisy old pale plain pleasant poor pretty proud pure quick quiet rare raw rich ripe rough
round rude sad safe salty sharp shiny short shy sick silly simple slim slow small smart smooth soft
sour steep strange strict strong sunny sweet tall tasty thick thin tidy tight tiny tough ugly warm
weak wealthy wet white wide wild windy wise young
""".split()

# Their noun is another one: "width", not "wideness".
NO_NESS = """
broad busy brief cheap deep early few fine great high hot hungry large long poor rich strong wide
wise young angry noisy
""".split()

ADVERB_BASES = """
accidental active actual angry anxious automatic bad basic beautiful bitter blind brave brief bright
calm careful careless cheap cheerful clear clever close cold comfortable complete correct cruel
curious dangerous dark deep delicate desperate different direct eager easy equal exact fair famous
final firm fluent foolish formal free frequent gentle glad graceful gradual grateful happy harsh
heavy honest hopeful hungry immediate independent joyful kind late lazy legal light local logical
loud lucky merry mysterious natural neat nervous nice noisy normal obvious official open painful
patient peaceful perfect personal playful polite poor possible powerful proper proud public quick
quiet rapid rare real recent regular rough rude sad safe secret serious sharp silent simple
sincere slow smooth soft special steady strange strict strong sudden sweet terrible thoughtful tight
total tragic true urgent usual vague violent visible warm weak wide wild wise wonderful wrong
""".split()

CATEGORIES = {
  "animal": """ant bear bee camel cat cow crab deer dog dolphin donkey eagle elephant fox frog
    giraffe goat gorilla hamster hen horse kangaroo leopard lion lizard monkey mosquito mouse
    octopus owl ox panda parrot penguin pig pigeon rabbit rat shark sheep snail snake spider
    squirrel swan tiger turtle whale wolf zebra""",
  "fruit": """apple apricot avocado banana blackberry blueberry cherry coconut cranberry date fig
    grape grapefruit guava kiwi lemon lime mango melon nectarine papaya peach pear pineapple plum
    pomegranate raspberry strawberry tangerine watermelon""",
  "vegetable": """asparagus artichoke bean beet broccoli cabbage carrot cauliflower celery corn
    cucumber eggplant garlic kale leek lettuce onion parsnip pea pepper potato pumpkin radish
    spinach tomato turnip yam zucchini""",
  "color": """beige black blue brown crimson cyan gold gray green indigo ivory khaki lavender
    magenta maroon navy pink purple red scarlet silver tan teal turquoise violet white yellow""",
  "profession": """accountant actor architect artist baker barber butcher carpenter chef clerk
    dentist doctor driver electrician engineer farmer fisherman gardener journalist judge lawyer
    librarian mechanic nurse painter pharmacist photographer pilot plumber policeman poet professor
    sailor scientist secretary singer soldier surgeon tailor teacher waiter""",
  "vehicle": """airplane ambulance bicycle boat bus car canoe ferry helicopter jeep kayak
    limousine lorry minivan moped motorcycle rocket scooter ship sled submarine taxi tractor train
    tram truck van wagon yacht""",
  "clothing": """belt blouse boots cap cardigan coat dress glove hat hoodie jacket jeans pajamas
    pants raincoat sandal scarf shirt shoe shorts skirt sock suit sweater tie trousers tuxedo
    vest""",
  "body part": """ankle arm cheek chest chin ear elbow eye eyebrow finger foot forehead hair hand
    heel hip jaw knee leg lip mouth neck nose rib shoulder skin stomach thumb toe tongue tooth
    wrist""",
  "instrument": """accordion banjo bassoon cello clarinet drum flute guitar harmonica harp keyboard
    lute mandolin oboe organ piano saxophone tambourine triangle trombone trumpet tuba ukulele viola
    violin xylophone""",
  "sport": """archery badminton baseball basketball bowling boxing cricket curling cycling fencing
    football golf gymnastics handball hockey judo karate lacrosse rowing rugby sailing skating
    skiing soccer surfing swimming tennis volleyball wrestling""",
  "tool": """axe chisel crowbar drill file hammer hoe ladder level lever nail pliers rake ruler saw
    sandpaper screwdriver shovel sickle spade wrench""",
  "furniture": """armchair bed bench bookcase cabinet chair couch cradle cupboard desk dresser lamp
    mattress mirror nightstand shelf sofa stool table wardrobe""",
  "drink": """beer champagne chocolate cider cocktail coffee cola juice lemonade milk soda tea vodka
    water whiskey wine""",
}
CATEGORIES = {name: words.split() for name, words in CATEGORIES.items()}

OBJECTS = """
anchor balloon basket battery bell blanket book bottle bowl box brick broom brush bucket button
calendar camera candle card carpet clock coin comb computer cup curtain envelope fork glass hook
jar kettle key knife lantern letter map medal needle newspaper notebook painting paper pen pencil
pillow plate purse radio ribbon ring rope soap spoon stamp telephone ticket towel toy umbrella vase
wallet whistle
""".split()

FIRST_NAMES = """
Adam Alice Anna Ben Carol Clara Daniel David Diana Emma Eric Eva Frank George Grace Hannah Harry
Helen Henry Jack James Jane John Julia Karen Kate Laura Leo Linda Lucy Maria Mark Martin Mary Max
Mike Nancy Nick Nina Oliver Oscar Paul Peter Rachel Robert Rosa Ruth Sam Sarah Simon Sophie Steven
Susan Thomas Tom Victor Walter
""".split()

COMPOUNDS = """
ice cream|post office|high school|living room|swimming pool|bus stop|traffic light|coffee table|
police station|washing machine|credit card|dining room|phone number|fire engine|alarm clock|
shopping center|tennis court|book store|train ticket|orange juice|front door|kitchen sink|
paper bag|night shift|summer camp|world record|city center|data base|home page|search engine|
mail box|water bottle|sun flower|snow storm|rain forest|sea food|apple pie|birthday party|
blood pressure|bread crumb|camp fire|car park|chess board|child care|class mate|cotton candy|
dance floor|day dream|dinner plate|dog house|ear ring|farm house|film star|flower pot|
football field|garden gate|gold fish|hair cut|hand bag|health care|honey bee|horse race|
hot dog|island life|jazz band|key board|lake side|lunch break|market place|milk shake|moon light|
mountain bike|music box|news paper|oil lamp|open source|palm tree|pocket watch|power plant|
rail way|river bank|road map|rock star|school bus|ship yard|silk road|space ship|stone wall|
street light|table cloth|tea spoon|time zone|toy shop|tree house|video game|village green|
wind mill|window seat|wine glass|winter coat|wood work
"""
COMPOUNDS = [compound.strip() for compound in COMPOUNDS.split("|")]

POSITIVE = """
amazing awesome beautiful brilliant charming cheerful comfortable delicious delightful elegant
enjoyable excellent exciting fantastic friendly generous gorgeous graceful great happy helpful
honest impressive joyful kind lovely magnificent marvelous nice outstanding perfect pleasant polite
remarkable splendid superb terrific thrilling wonderful
""".split()

NEGATIVE = """
annoying awful bad boring broken cruel depressing dirty disappointing disgusting dreadful dull
dishonest filthy greedy horrible hostile lazy mean miserable nasty offensive painful pathetic poor
rotten rude sad selfish stupid terrible ugly unfair unpleasant useless vile violent weak wicked
worthless
""".split()
