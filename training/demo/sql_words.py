"""Words that invented tables are put together from; words only.

Columns are written as in `sql_phrases`: a mark for the type, then ways to say a condition. No noun names a held-out
table.
"""

# Word lists read better as split text than as one literal a line.
# ruff: noqa: SIM905

_NOUNS = (
    "agents applicants apartments appliances assets auctions barns beers benches bikes bridges bushes cafes "
    "cameras campaigns canals casks castles cats chairs churches clients clinics coaches coins colleges "
    "companies concerts contracts cottages crates crews deliveries dentists deposits deputies desks diets dogs "
    "drivers drones editors engines errands exams exhibits experiments factories ferries films firms flowers "
    "forests forklifts fountains gardens gates goods guards guests guides gyms harvests helmets herds hikes "
    "horses incidents inspections interns islands jackets jobs journals judges kitchens lakes lamps laptops "
    "lawyers lectures lentils licenses loans lots machines magazines mechanics meetings members merchants "
    "meters mines models monitors motors nurses offers offices orchards packages parcels parks parties "
    "partners passengers permits phones pilots pipelines planets polls ports printers prisons prizes programs "
    "quarries quizzes quotes races ranches refunds rentals repairs reports routes sailors scooters ships shoes "
    "shops soldiers stadiums stations streets studios surveys tablets tanks taxis tenants theaters tools tours "
    "towers tractors trails trees trips trucks tunnels tutors vans vendors villages visits voters wagons "
    "watches wells windows workers workshops zones"
)
NOUNS = tuple(_NOUNS.split())

_TEXT_COLUMNS = (
    "name$ name$ title$ label$ code$ email$ phone$ address$ nickname$ contact$ supervisor$ inspector$ sponsor$ "
    "editor$ publisher$ producer$ founder$ driver$ captain$ tenant$ landlord$ buyer$ seller$ brand_name$ "
    "serial_number$ first_name$ last_name$ job_title$ street$ notes$ website$ license_plate$ surname$ village$ "
    "reference$ recipient$"
)
TEXT_COLUMNS = tuple(_TEXT_COLUMNS.split())

NUMBER_COLUMNS = (
    "age#@>older than@<younger than",
    "price%@<cheaper than@>costing more than",
    "cost%",
    "amount%@>over@<under",
    "salary#@>earning more than",
    "height#@>taller than@<shorter than",
    "width%@>wider than@<narrower than",
    "length%@>longer than@<shorter than",
    "weight%@>heavier than@<lighter than",
    "depth%@>deeper than",
    "speed#@>faster than@<slower than",
    "distance%",
    "duration#",
    "score#@>scoring more than",
    "points#",
    "power#",
    "pressure%",
    "voltage%",
    "mileage#",
    "fuel%",
    "seats#@>with more seats than",
    "windows#",
    "doors#",
    "beds#",
    "wheels#",
    "pages#",
    "copies#",
    "votes#",
    "clicks#",
    "visits#",
    "orders#",
    "returns#",
    "profit%",
    "tax%",
    "rent%",
    "fine%",
    "discount%",
    "deposit%",
    "quantity#",
    "stock#",
    "year#@=from|in",
    "start_year#@>started after@<started before",
    "end_year#",
    "build_year#@>built after@<built before",
    "num_rooms#",
    "num_children#",
    "unit_price%",
    "total_cost%",
    "monthly_fee%",
    "max_speed#",
    "avg_rating%",
    "page_count#",
    "years_of_service#",
    "battery_level#",
    "engine_size%",
    "floor_area%",
    "order_count#",
    "error_rate%",
    "daily_visitors#",
    "experience#",
    "budget%",
    "rating%@>rated above@<rated below",
    "lives_saved#",
    "miles#",
    "kilometers#",
    "workers#",
    "students_enrolled#",
    "goals_scored#",
    "staff#",
    "founded#@>founded after@<founded before",
    "closed#@>closed after@<closed before",
    "renovated#@>renovated after@<renovated before",
    "planted#@>planted after",
    "edition#",
    "age_limit#",
    "beds_free#",
)

CATEGORY_COLUMNS = (
    "city=Paris|London|Chicago|Sydney|Delhi@in|from",
    "town=Ulm|Salem|Dover|Lund@in|from",
    "state=Texas|Ohio|Utah|Maine@in|from",
    "county=Kent|Essex|Clare|Devon@in",
    "country=Italy|China|Mexico|Ghana|Sweden@in|from",
    "continent=Asia|Africa|Europe@in",
    "port=Hamburg|Genoa|Lisbon@in|at",
    "status=active|inactive|pending|blocked",
    "state_of_repair=good|poor|broken",
    "color=red|green|blue|yellow|grey",
    "size=small|medium|large@of size",
    "type=basic|standard|premium|custom@of type",
    "category=A|B|C|D@in category|in the category",
    "material=wood|steel|glass|stone@made of",
    "maker=Bosch|Siemens|Hitachi|Philips@made by",
    "manufacturer=Airbus|Boeing|Embraer@made by|built by",
    "brand=Nike|Puma|Adidas@of the brand|by",
    "language=English|Polish|Arabic@in",
    "weekday=Monday|Friday|Sunday@on",
    "month=March|August|October@in",
    "season=summer|winter|spring@in",
    "shift=day|night|late@on the",
    "gender=male|female",
    "department=Legal|Research|Support|Design@in|in the department|of",
    "team=Red|Blue|Tigers|Eagles@in team|of the team",
    "floor=first|second|third@on the",
    "method=phone|email|letter@by",
    "priority=low|normal|high@with priority",
    "genre=jazz|rock|drama|opera",
    "sport=tennis|rugby|chess@playing",
    "subject=Chemistry|Latin|Geography@teaching|about|on",
    "topic=energy|health|space|sports@about|on",
    "fuel_type=diesel|petrol|electric@running on",
    "skill=welding|sewing|coding@with the skill|good at",
    "license=A|B|C@with license",
    "grade=gold|silver|bronze@of grade",
    "cuisine=Thai|Greek|Indian@serving",
    "climate=dry|wet|mild",
    "crop_type=barley|oats|potatoes@growing",
    "species=oak|pine|trout|owl@of the species",
    "owner=Smith|Garcia|Meyer|Tanaka@of|owned by|belonging to",
    "agency=NOAA|CERN|FBI@of|run by",
    "operator=Shell|Orange|Hertz@run by|operated by",
)

# What made-up columns are put together from.
_THINGS = (
    "acres alarms apples awards axles badges bags balls baskets bells bids bikers blades boards bonuses bottles bows "
    "bricks bulbs cables calls candles cards chapters chefs cycles dancers deals defects dishes doses drills "
    "eggs entries errors fans fees filters fires flags flights floods frames gears glasses grants handles heads hooks "
    "hoses hours inches injuries kilos knots ladders layers ledges lenders levels lifts lights liters locks masts "
    "minutes mirrors mugs nets nights notes nuts oars outlets owners paddles pans patches payments pens pickers "
    "pillars pipes plates plots pools posts pumps quotas racks riders rings roofs ropes sacks screens screws seeds "
    "shares shields shots showers sinks skaters slots spots spokes stairs stalls steps stickers stops straps strings "
    "suites switches tents tests threads tips tiles tons toys tracks trays turns units valves vents wards weeks "
    "wings wires yards"
)
THINGS = tuple(_THINGS.split())
BEFORE = tuple(
    "num total max min avg last first net gross daily weekly monthly old new open main spare free base extra".split()
)
BEHIND = tuple(
    "made lost left used kept paid count rate level size score limit total index share cost code per_day "
    "per_year in_use built moved due saved opened".split()
)
KINDS = tuple("type kind class zone group area mode code name brand label origin state style".split())
VALUES = tuple(
    "Arden Basil Birch Bravo Cairo Cedar Comet Coral Crown Delta Dune Ember Falcon Fern Gamma Globe Harp Heron Indigo "
    "Iris Jade Juno Kappa Kite Lima Lotus Lunar Mango Maple Metro Nova Oasis Olive Omega Onyx Opal Orion Pearl Pine "
    "Polar Quartz Raven Ruby Sable Sigma Solar Stone Tango Terra Tiger Topaz Ultra Umber Vega Velvet Vista Willow "
    "Xenon Yukon Zebra Zulu alpha beta dark double eastern fixed flat front hybrid inner late left light lower manual "
    "mobile national outer plain rear regular right round rural sealed sharp short single solid square sweet twin "
    "upper urban wide "
    "AGM BBX CERT DIN EKA FIFO GPZ HQ IBAN KLT LED MIX NORD OPEC PVC QR RSX SUV TGV UTC VAT WLAN XS ZDF "
    "X1 X2 B7 C12 D4 E20 F5 Q3 T8 Z9".split()
)
