"""Words of all kinds, for rows whose content is to be copied and not understood: common ones out of the other phrase
files, rarer ones, and coined ones.

Knows no task. Whoever copies words it has never copied before must know them with and without a space in front, in
small letters and capitals. Many words are one token behind a space and several without it, most of the rarer ones
among them, so a few hundred common words do not teach that.
"""

# Word lists read better as split text than as one literal a line.
# ruff: noqa: SIM905

import re
from collections.abc import Iterable
from random import Random

from training.demo import general_phrases, sentiment_reviews, sentiment_told


def _texts() -> Iterable[str]:
    groups = (general_phrases.CHAT, general_phrases.KNOWLEDGE, general_phrases.WRITING, general_phrases.CODE)
    for templates in (*(group[key] for group in groups for key in group), *general_phrases.SLOTS.values()):
        yield from templates
    for domain in sentiment_reviews.DOMAINS:
        yield from (*domain.nouns, *domain.aspects, *domain.good, *domain.bad, *domain.facts)
    for told in sentiment_told.TOLD.values():
        yield from told


def _words(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({word for text in texts for word in re.findall(r"(?<![\w{<])[a-z]{3,10}(?![\w}>])", text)}))


_RARER = (
    "abacus abdomen abstain acorn acrobat adhesive admiral adobe adrift afloat agenda airfare airlock alcove algae "
    "alibi alloy almond alpine aluminium amber ambush amnesty amulet anchor android anklet antenna anthem antler "
    "anvil apron aquarium arcade archer arsenal artery asphalt aspirin asterisk atlas atrium auction avalanche "
    "avocado axle backlog badger bagpipe bakery ballast ballot bamboo bandage banjo banner banquet barge barley "
    "barometer barrel barrier basin bassoon bauxite bayonet bazaar beacon beaker beanbag beaver bedrock beetle "
    "bellows berry bevel bicycle binder biscuit bison blanket blender blister blizzard bloom blossom blotter bobbin "
    "boiler bonfire bonnet boulder bouquet bowling boycott bracelet bramble brandy brass bravado breeze brewery "
    "bribe brigade brisk broccoli brochure bronze broth bruise bucketful buckle buffalo buggy bulldozer bumper bunker "
    "burlap burrow butter buzzer cabbage cabin cactus cadence calcium calorie camel canal canary candle cannon canoe "
    "canopy canteen canvas canyon caramel caravan carbon cargo carnival carpet carrot cartridge carve cascade casino "
    "castle catalogue catapult cathedral cauldron cavern cedar ceiling celery cellar cement census ceramic chalk "
    "chamber champion chandelier charcoal chariot charter chassis checker cherry chestnut chimney chisel chlorine "
    "chord chrome chronicle cinder cinema cinnamon circus citadel citrus clamp clarinet clause clay cliff climate "
    "clinic cloak clover clutch coalition cobalt cobbler coconut cocoon codec coffin coil collage collar colony "
    "column comet commerce compass compost concert concrete condenser conduit cone convoy copper coral cork cornice "
    "corridor cosmos costume cottage cotton cougar council coupling courtyard cradle crane crater crayon creek "
    "crescent crew cricket crimson crocus crossbar crowd crown crucible cruiser crumb crystal cuckoo cucumber "
    "cuisine culvert cupboard curator curfew currant curry curtain cushion custard cutlery cyclone cylinder cymbal "
    "dagger dahlia dairy daisy damper dandelion dawdle daylight debris decade decal decanter decimal decoy deficit "
    "deluge denim dental deposit depot derrick desert dessert detour diagonal diagram diamond diaper dictate diesel "
    "dilemma dimmer dinghy dioxide diploma discount dishwasher distillery ditch divan divider docket dolphin domino "
    "donkey doorbell dosage dowel dragon drainage drapery drawbridge dredger dresser drizzle drone drought drum "
    "duchess dugout dumpling dungeon dwelling dynamo eagle earring earthquake easel eclipse eddy eggplant elastic "
    "elbow elder elevator elixir ember embargo emblem embryo emerald emission empire enamel encore engrave enigma "
    "envoy enzyme epoch epoxy equator equinox erosion escort essay estuary ethanol etching exhaust exile expedition "
    "exponent extract fabric facade factory falcon fanfare farmland farthing fathom faucet feather fencing ferment "
    "ferry fertile fibre fiddle fillet filament finale finch fiscal fissure fixture flagship flannel flask flavour "
    "fleece flint flounder flour flute foam foghorn foliage forecast forge formula fortress fossil fountain fracture "
    "fragment freckle freezer freight fresco friction fridge frigate fringe frost fruit fungus funnel furnace "
    "furrow fuselage gable gadget galaxy gallery galley gallon galore gangway garage garden gargoyle garland garlic "
    "garment garnet garrison gasket gauge gazebo gazelle gear gelatin generator geyser ginger giraffe girder glacier "
    "glade glaze glider glimpse globe glossary glucose glue goblet goggles goldfish gondola gong gorge gourmet "
    "gradient granary granite grapefruit graphite grater gravel gravity grenade griddle grinder grocery grotto "
    "groundhog grove guitar gulf gutter gymnast gypsum habitat hacksaw hailstone halibut hallway halo hamlet hammer "
    "hammock hamper handrail hangar harbour hardware harness harp harpoon harvest hatchet hawk hazard hazel headlamp "
    "heather hedge helium helmet hemlock herald herb hermit heron herring hexagon hibiscus hinge hoist hollow "
    "hologram homestead honey hoof hopper horizon hornet horoscope hostel hourglass hovercraft humidity hurdle "
    "hurricane husk hydrant hydrogen hyena hyphen iceberg icicle igloo illusion impulse incense incline indigo "
    "infantry influx ingot inkwell inlet insect insignia insulin intake interior intrigue inventory iodine iris "
    "island isotope ivory jackal jackpot jaguar janitor jasmine javelin jelly jersey jetty jewel jigsaw jockey "
    "joiner joystick jubilee jungle juniper jury kayak kennel kernel kerosene kettle keyhole kidney kiln kimono "
    "kingfisher kiosk kitchen kitten knapsack knight knuckle koala labyrinth lacquer lagoon lamppost lantern larder "
    "larva lasagne lathe latitude lattice laundry laurel lavender lawn leaflet leather lecture legend legume lemon "
    "lentil leopard lettuce lever lichen lifeboat lighthouse lilac limerick limestone linen linseed lizard llama "
    "lobby lobster locket locomotive locust lodge longitude lotus lounge lozenge lumber luminous lunar lunch lupin "
    "lynx lyric macaroni machete mackerel magenta magnet magnolia magpie mahogany mainland mallet mammal mandolin "
    "mango mansion mantle marathon marble margin marigold marina maritime marmalade marquee marsh marsupial mason "
    "mast mattress meadow medal medallion medley melody melon membrane mercury meridian mermaid metaphor meteor "
    "methane microbe midwife mildew milestone mileage mill millet mineral minnow mint miracle missile mitten moat "
    "molasses molecule monastery monsoon monument mooring morale mortar mosaic mosquito moss motel motto mountain "
    "moustache muffin mulberry muscle museum mushroom musket mustard myrtle napkin narrator nebula necklace nectar "
    "needle nettle neutron nickel nightingale nitrogen nomad noodle nostril notary nougat novelist nozzle nucleus "
    "nugget nursery nutmeg nutrient oasis oatmeal obelisk oboe obsidian ocean octagon octopus offspring olive omelette "
    "onion opal opera optic oracle orbit orchard orchestra orchid ordeal organism origami ornament orphan osprey "
    "ostrich otter outpost oval oven overcoat oxygen oyster paddle paddock padlock pagoda palace palette palm "
    "pamphlet pancake panorama panther papaya papyrus parachute parade paradox paragraph parapet parasol parchment "
    "parish parsley parsnip pasta pastry pasture patio patrol pavement pavilion peacock peanut pebble pedal pedestal "
    "pelican pendulum penguin peninsula pepper perfume perimeter periscope permafrost petal petroleum pewter pheasant "
    "phosphor piano piccolo pickaxe pickle pigeon pigment pilgrim pillar pillow pinecone pioneer pistachio piston "
    "pitcher pixel pizza plankton plaster plateau platinum plaza pliers plough plumage plywood poker pollen polygon "
    "poncho pontoon poplar poppy porcelain porcupine porridge portrait postcard potato pottery powder prairie prefix "
    "premium prism propeller prophet protein prune pudding pulley pulse pumice pumpkin puppet purse puzzle pyramid "
    "python quail quarry quartz quaver quiche quill quilt quinoa quiver rabbit raccoon radar radiator radish raffle "
    "rafter railway rainbow raisin rampart ranch rascal raspberry ratchet rattle raven ravine reactor rebate recess "
    "recipe rectangle redwood reef refinery reflex regatta reindeer relic remedy renegade reptile reservoir residue "
    "resin resonance retina rhubarb rhythm ribbon riddle rivet robin rodent roller rooster rosemary rotunda roulette "
    "rubber rubble rudder rugby ruler rust saddle saffron sailor salad salamander salmon saloon sandal sandbank "
    "sapling sapphire sardine satchel satellite satin sauna sausage savanna sawmill saxophone scaffold scallop scarf "
    "scarlet scenery sceptre schooner scissors scooter scorpion sculptor seaweed sediment seedling seesaw sequoia "
    "serpent sesame shampoo shanty sheriff sherbet shingle shipyard shovel shrimp shrub shuttle sickle silicon silk "
    "silver simmer siphon skeleton sketch skillet skylight slate sledge sleet slipper slogan sluice smelter snail "
    "snorkel snowdrift socket sodium sofa solstice sonata sorbet soybean spaghetti spanner sparrow spatula speckle "
    "sphere spice spider spinach spindle spiral spire splinter sponge sprinkler spruce squadron squash squid "
    "squirrel stadium stairway stallion stampede stapler starfish statue steeple stencil stereo steward stirrup "
    "stopwatch stove stratum strawberry stretcher sturgeon sulphur sultan summit sundial sunflower surgeon swallow "
    "swamp swan sweater swordfish sycamore symphony syringe syrup tadpole talcum talisman tambourine tangerine "
    "tannery tapestry tarmac tavern teacup teapot teaspoon telegram telescope tempest tendon tentacle termite "
    "terrace terrain thermos thicket thimble thistle thunder tiara tidal tiger timber tinsel tissue toaster toffee "
    "tomato topaz torch tornado torpedo torrent tortoise toucan tractor trapeze treasure treaty trellis trench "
    "triangle tribune trident trigger trinket trolley trombone trophy trousers trout trowel trumpet tulip tundra "
    "tungsten turban turbine turnip turquoise turret turtle tuxedo twilight typhoon umbrella unicorn uranium urchin "
    "utensil valley vanilla varnish velvet veranda vessel viaduct village vinegar vineyard violet violin viper "
    "vitamin volcano voyage vulture waffle wagon walnut walrus waltz warbler wardrobe waterfall weasel whirlpool "
    "whisker whistle wicker wigwam willow windmill wizard wolf woodland woodpecker wreath wrench yacht yarn yogurt "
    "zebra zeppelin zinc zipper zodiac"
)
_STARTS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sc sh sk sl sp st str t th tr v w z".split()
)
_MIDDLES = "a e i o u ai ea ee ie oa oo ou ar er or an en in on ast est ill und".split()
_ENDS = "b ck d g k l ll m n nd ng nt p r rd s sh sk t th ton la lo ma met ra rin ta va tor ner dle ment ty".split()
WORDS = tuple(sorted({*_words(_texts()), *_RARER.split()}))
COINED_SHARE = 0.15


def any_word(rng: Random) -> str:
    """A word, common or rare, or one that does not exist."""
    if rng.random() < COINED_SHARE:
        return rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)
    return rng.choice(WORDS)
