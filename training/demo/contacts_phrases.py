"""Wordings, names and layouts of the contacts task; phrases only."""

# Word lists read better as split text than as one literal a line.
# ruff: noqa: SIM905

from training.demo.wording import Phrasebook

LABELS = ("Text", "Contact", "Input", "Signature", "Contact info", "Message")

TRAIN = Phrasebook(
    orders=(
        "Extract the contact [details|information|data|info] [as|to|into] JSON",
        "Extract the contact [details|information|info] from [this|the|the following] [text|message|signature] as JSON",
        "Extract name, email, phone and company[| as JSON| from this text| in JSON format| into a JSON object]",
        "Extract the name, email, phone and company from [this|the] [text|signature|card|message]",
        "[Turn|Convert] [this|the] [contact|signature|business card|text|contact text] [to|into] JSON",
        "[Turn|Convert] [this|the following] contact [to|into] a JSON [object|record] with name, email, phone and "
        "company",
        "[Turn|Convert] [this|these] contact details into JSON[| with null for missing fields]",
        "Parse [this|the|the following] [contact|signature|email signature|business card] [into|to|as] JSON",
        "Parse the contact [info|details|information][| into JSON| as JSON| and return JSON]",
        "Parse name, email, phone, company [from|out of] [this|the text below] [into|as] JSON",
        "[Give|Return|Output|Write] [me |]the contact [details|info] [in|as] JSON",
        "[Give|Return|Output] JSON with [name, email, phone, company|the keys name, email, phone and company]",
        "[Make|Create|Build|Produce] a JSON [object|record] [from|out of] [this|the] [contact|contact "
        "text|signature|card]",
        "[Make|Create] a contact [record|entry] in JSON [from|out of] [this text|this message|the following]",
        "[Find|Get|Pull] the name, email, phone and company [in|from] [this|the] text[| as JSON]",
        "[Get|Pull|Grab] the contact [details|info] [from|out of] [this|the] [text|message|note] [as|into] JSON",
        "Read [this|the] [business card|signature|contact card] and [return|output|write] JSON",
        "Fill in name, email, phone and company as JSON, null where [missing|unknown|not given]",
        "[Structure|Format] [this|the] contact [information|text|data] as JSON",
        "[List|Collect] the person's name, email, phone and company [as|in] JSON",
        "Identify the contact fields (name, email, phone, company) and [return|output|print] JSON",
        "Transform [this|the] signature into a JSON contact",
        "Save [this|the] contact as JSON",
        "[Extract|Parse] the contact [below|above|here]",
        "[Extract|Parse] the contact [details|fields|info|information]",
        "Extract who to contact and how, as JSON",
        "Put [this|the] contact in[|to] JSON with keys name, email, phone, company",
        "Write [this|the] address book entry as JSON",
    ),
    remarks=(
        "[contact|signature|business card|vcard text] to JSON",
        "[contact|signature|card] -> JSON",
        "contact [JSON|json|as JSON]",
        "[JSON|json] contact [card|record] please",
        "name, email, phone, company as JSON",
        "name/email/phone/company",
        "contact [extraction|parser]",
        "What are the contact details [here|in this text]? [Answer in|Return|Use] JSON.",
        "What is the contact [information|info] in this [text|message|signature]? [JSON|Answer as JSON].",
        "Which name, email, phone and company [are|do you see] in this text? [Use|Reply in] JSON.",
        "Who is the contact [here|in this message]? Answer [as|in] JSON with name, email, phone, company.",
        "I need [this|the] contact as [JSON|a JSON object]",
        "I need name, email, phone and company [from this|out of this] as JSON",
        "Contact details as JSON, null for missing fields",
        "How would this contact look as JSON?",
        "For my CRM: [this contact|this signature] as JSON",
    ),
    inline=(
        "Extract the contact from {x} as JSON",
        'Extract the contact details from "{x}" [as|into|to] JSON',
        "Get the name, email, phone and company from: {x}",
        'The message says "{x}" [Give me|Extract|Return] the contact as JSON.',
        'What are the contact details in "{x}"? Reply in JSON.',
        "Turn the contact {x} into JSON",
        "[Contact|contact] to JSON: {x}",
        "{x} -> [JSON contact|contact JSON|name, email, phone, company]",
        "Parse {x} into name, email, phone, company",
        "I got this: {x} Please [make|return] a JSON contact record.",
    ),
    tails=(
        "Use null for missing fields.",
        "Missing values are null.",
        "Return only JSON.",
        "Keys: name, email, phone, company.",
        "Use the keys name, email, phone, company.",
        "If something is missing, use null.",
        "One line of JSON.",
        "Only output the JSON.",
    ),
    labels=LABELS,
)

HELD_OUT = Phrasebook(
    orders=(
        "Distil a JSON address-book object out of what is written here",
        "Harvest the person, mail address, telephone number and employer into one JSON line",
        "Serialise the particulars of this person as a JSON contact",
        "Digitise this business card (JSON please)",
        "Work out who can be reached and by what means, then report it in JSON",
        "Scan the signature block and emit a JSON contact",
        "Populate a JSON contact object using what you see",
        "Compile a machine-readable contact entry (JSON) of the person described",
    ),
    remarks=(
        "How can this person be reached? Reply with a JSON contact.",
        "My address book imports JSON; what would this entry be?",
        "JSON contact for the person in here?",
        "contact sheet row, JSON, four keys",
    ),
    inline=(
        "Somebody wrote: {x} Capture that contact as a JSON object.",
        "JSON address card wanted for: {x}",
        "Take {x} and lay it out as contact JSON",
    ),
    tails=("Put null where nothing is given.", "JSON and nothing besides."),
    labels=LABELS,
)

FIRST = (
    "Jane John Maria Ahmed Wei Olga Pedro Aisha Lars Yuki Emma Noah Priya Carlos Fatima Ivan Sofia Liam Mei Kwame "
    "Anna Omar Julia Marco Elena Raj Hanna David Lucia Tom Nadia Peter Chloe Hugo Ingrid Samuel Leila Viktor Grace "
    "Diego Amara Felix Rosa Jonas Zoe Ali Clara Ben Eva Kenji Laura Mateo Nina Oscar Paula Quinn Rita Sven Tara Uma "
    "Vera Will Xin Yara Zack Ines Arjun Beth Cem Dana Erik Freya Goran Hiro Iris Jack Karim Lena Milan Nora Otto Piet "
    "Ruth Simon Tina Ulf Violet Walter Yusuf Zara André Chloé José Zoë Jürgen Siobhan Mary Robert Linda James Susan "
    "Kevin Karen Brian Megan Steve Amy Greg Kim Alex Sam Chris Pat Rachel Daniel Michelle Andrew Katie Matthew Sarah"
).split()
LAST = (
    (
        "Doe Smith Garcia Khan Chen Petrova Silva Bello Larsen Tanaka Brown Miller Sharma Lopez Hassan Novak Rossi "
        "Wilson "
        "Wong Mensah Schmidt Farouk Dubois Bianchi Popov Patel Virtanen Cohen Moreno Baker Ivanova Clark Martin Weber "
        "Berg Osei Rahimi Horvat Taylor Ramos Okafor Braun Vega Lindqvist Young Demir Keller Wright Kowalska Sato "
        "Fischer "
        "Torres Meyer Lund Costa Murphy Ricci Holm Singh Rao Jensen Walker Li Haddad Cooper Nunes Kumar Reed Yilmaz "
        "Stone "
        "Eriksson Olsen Jovic Mori Blake Adams Nasser Vogel Marek Quist Becker Jansen Hughes Frank Orlova Strand Hill "
        "Acar Lane O'Brien D'Angelo Müller Muñoz Fernández Nguyen Park Johnson Davis Jackson White Harris Lewis Hall "
        "Allen King Scott Green Nelson Carter Mitchell Turner Phillips Campbell Parker Evans Edwards Collins "
        "Smith-Jones "
        "Garcia-Lopez de Boer van Dijk"
    )
    .replace("de Boer", "de_Boer")
    .replace("van Dijk", "van_Dijk")
    .split()
)
BRANDS = (
    "Acme Northwind Bluebird Vertex Harbor Silverline Greenfield Orion Pixel Summit Lakeside Redwood Nimbus Falcon "
    "Cobalt Evergreen Quantum Maple Atlas Brightside Cedar Delta Echo Fjord Granite Helix Iris Juniper Kestrel Lumen "
    "Meridian Nova Oakwood Pioneer Quarry River Sterling Tidal Umbra Vista Willow Zenith Alpine Beacon Crescent "
    "Dynamo Ember Frontier Globex Horizon Indigo Keystone Lotus Monarch Nordic Osprey Prism Rocket Sunrise Tundra "
    "Stark Wayne Initech Umbrella Hooli Contoso Fabrikam Tailspin"
).split()
_MORE_BRANDS = (
    "Amber Anchor Apex Arrow Aspen Aurora Azure Badger Bamboo Baltic Birch Bison Bolt Boulder Breeze Bridge "
    "Bronze Cactus Canyon Capital Cascade Castle Chestnut Cipher Citadel Clover Comet Compass Copper Coral "
    "Corner Cosmo Crystal Cypress Dawn Diamond Dragon Eagle Eclipse Elm Emerald Everest Fern Flint Forge Fox "
    "Galaxy Garnet Glacier Golden Grove Gull Harvest Hawk Hazel Heron Hill Ivory Ivy Jade Jasper Lark Laurel "
    "Legend Liberty Lighthouse Lily Linden Lion Lunar Lynx Magnet Marble Marina Meadow Mercury Metro Mint "
    "Mirage Moss Mountain Neptune Noble Nomad Oasis Ocean Olive Onyx Opal Orbit Orchard Otter Palm Panda Pearl "
    "Pebble Phoenix Pine Polar Poplar Radiant Raven Reef Ridge Robin Saffron Sail Salt Sapphire Scout Shore "
    "Spark Spruce Star Stone Storm Swan Swift Tango Teal Tempo Terra Thunder Tiger Topaz Trident Tulip Turtle "
    "Valley Vega Velvet Violet Vivid Walnut Wave Whale Wolf Yellow Zebra Zephyr"
)
MORE_BRANDS = tuple(_MORE_BRANDS.split())
_HANDLES = (
    "admin apply art baker bike blue book box care chef city club cook crew dance desk doc dog events farm "
    "film fish fit fun garden green guide hello help home ink jazz job kids king lab lion list love mail math "
    "me media mike moon music news night north one order pay pixel pizza plan press print queen quick rain red "
    "rider rock room sky snow soft song space star studio sun super support surf talk tax tea team tech ticket "
    "time tiny top travel tree trip true two video walk web wild win wind work write yoga young zen"
)
HANDLES = tuple(_HANDLES.split())
KINDS = (
    "Ltd|Inc.|GmbH|Corp|Labs|Logistics|Software|Consulting|Foods|Bank|Design|Motors|Media|Health|Energy|Systems|"
    "Solutions|Partners|Studio|Group|Travel|Books|Bikes|Dental|Architects|Security|Robotics|Textiles|Bakery|Law|LLC|"
    "AG|S.A.|Ltd.|Inc|& Sons|& Co.|Insurance|Hotels|Clinic|Industries|Technologies"
).split("|")
TITLES = (
    "Sales Manager|Software Engineer|CEO|Head of Marketing|Account Manager|CTO|Project Lead|Designer|HR Manager|"
    "Customer Support|Office Manager|Architect|Data Scientist|Consultant|Founder|Product Owner|Accountant|Buyer|"
    "Director of Operations|Research Assistant|Lawyer|Event Planner|Nurse|Editor|Key Account Executive"
).split("|")
TOWNS = "Berlin London Oslo Lisbon Denver Tokyo Madrid Leeds Austin Porto Vienna Dublin Boston Lyon Perth Turin".split()

# {n} name, {e} email, {p} phone, {c} company, {t} title, {w} town. Lines with a missing slot are dropped.
LINES = {
    "n": (
        "{n}",
        "{n}",
        "{n}",
        "Name: {n}",
        "Name: {n}",
        "Contact: {n}",
        "Contact person: {n}",
        "{n}, {t}",
        "Attn: {n}",
    ),
    "e": ("{e}", "{e}", "Email: {e}", "E-mail: {e}", "email: {e}", "Mail: {e}", "E: {e}", "Write to: {e}", "e. {e}"),
    "p": (
        "{p}",
        "{p}",
        "Phone: {p}",
        "Tel: {p}",
        "Tel. {p}",
        "T: {p}",
        "Mobile: {p}",
        "M: {p}",
        "Cell: {p}",
        "Ph: {p}",
    ),
    "c": ("{c}", "{c}", "{c}", "Company: {c}", "Organisation: {c}", "Employer: {c}", "Firm: {c}", "{c}, {w}"),
}
OPENERS = ("Best regards,", "Kind regards,", "Thanks,", "Cheers,", "Sincerely,", "--", "Best,", "Regards,", "BR,")
EXTRAS = (
    "{t}",
    "{w}",
    "12 Main Street, {w}",
    "Open Mon-Fri 9-17",
    "Looking forward to hearing from you.",
    "{w} office",
    "Sent from my phone",
)

# Sentences by the fields they give.
SENTENCES = {
    "nepc": (
        "You can reach {n} at {c} via {e} or {p}.",
        "{n} from {c} left a message, call back on {p} or write to {e}.",
        "Please contact {n} ({c}), {p}, {e}.",
        "Hi, this is {n} of {c}. My number is {p} and my email is {e}.",
        "For orders talk to {n} at {c}: {e}, tel. {p}.",
        "I'm {n}, I work at {c}. Reach me at {e} or {p}.",
        "{n}, {t} at {c}, can be called on {p} or mailed at {e}.",
        "Our new supplier is {c}; ask for {n}, {e}, {p}.",
        "{n} | {c} | {e} | {p}",
        "{n}, {c}, {p}, {e}",
        "{c} - {n} - {p} - {e}",
        "Get in touch with {n} at {c} by mail ({e}) or phone ({p}).",
        "{c} has a new contact: {n}, {p}, {e}.",
        "Visit {c} and ask for {n}. Call {p} first or drop a line to {e}.",
        "Invoices go to {n}, {c}, at {e}; in doubt ring {p}.",
        "Speak with {n} about it: {p}, {e}, {c}.",
        "Yesterday {n} of {c} gave me {p} and {e}.",
        "{e} and {p} belong to {n} at {c}.",
        "Tell {n} ({e}, {p}) that {c} has to wait.",
    ),
    "nep": (
        "You can reach {n} at {e} or {p}.",
        "My name is {n}, my email is {e} and my phone number is {p}.",
        "Call {n} on {p} or write to {e}.",
        "{n} said to mail {e} or ring {p} after lunch.",
        "New tenant: {n}, {p}, {e}",
        "hey its {n}, new number {p}, mail is still {e}",
        "{n} <{e}> {p}",
        "Ask {n}, either by phone at {p} or by mail at {e}.",
        "Landlord {n} can be found at {e} and {p}.",
        "{p} is the new number of {n}, the mail stays {e}.",
        "Ping {n} on {p}, otherwise try {e}.",
        "Driver: {n}. Phone {p}. Mail {e}.",
    ),
    "nec": (
        "{n} from {c} asked you to write to {e}.",
        "Please send the offer to {n} at {c}, {e}.",
        "{n} works for {c}; the address is {e}.",
        "I met {n} of {c} at the fair, email {e}.",
        "Questions? Ask {n} ({c}) at {e}.",
        "{n}, {t}, {c} <{e}>",
        "{n} has moved to {c} and now uses {e}.",
        "Mail {n} of {c} at {e} about the contract.",
        "Meet {n} from {c}; for the agenda write to {e}.",
        "Our lawyer is {n} ({c}), address {e}.",
        "The invitation to {c} came from {n}, {e}.",
    ),
    "npc": (
        "{n} from {c} called, the number is {p}.",
        "Call {n} at {c}: {p}.",
        "The plumber is {n} of {c}, phone {p}.",
        "Please ring {n} ({c}) on {p} before Friday.",
        "{n}, {t} at {c}, {p}",
        "{c} sends {n}; reach them on {p}.",
        "Dial {p} and ask for {n} of {c}.",
        "Our electrician {n}, {c}, has the number {p}.",
        "Phone {n} over at {c}, {p}, for the keys.",
        "{n} of {c} rang and wants a call to {p}.",
    ),
    "ne": (
        "Please send the minutes to {n}, {e}.",
        "You can write to {n} at {e}.",
        "{n} <{e}>",
        "My name is {n} and my email address is {e}.",
        "Forward it to {n} ({e}), thanks.",
        "Send {n} a copy at {e}.",
        "Mail {n}: {e}",
        "{e} is where {n} gets mail.",
        "The author is {n}, write to {e}.",
        "Invite {n} too, that is {e}.",
    ),
    "np": (
        "Call {n} at {p}.",
        "{n}'s number is {p}.",
        "Hi, {n} here, ring me back on {p}.",
        "The babysitter is {n}, {p}.",
        "In an emergency phone {n}: {p}",
        "Ring {n} tomorrow, {p}.",
        "Message {n} on {p} about the tickets.",
        "Tell {n} to come, {p}.",
        "{p} is {n}.",
        "Ask {n} for the code: {p}",
        "My neighbour {n} has the spare key, {p}.",
        "Phone {n} if you are late: {p}",
    ),
    "epc": (
        "Contact {c} at {e} or {p}.",
        "{c}: {p}, {e}",
        "For support from {c} call {p} or mail {e}.",
        "{c} is open again: phone {p}, mail {e}.",
        "Book a table with {c}, {p} or {e}.",
        "{c} handles bookings, see {e} and {p}.",
        "Orders to {c} by mail ({e}) or phone ({p}).",
        "Ask {c} for an offer: {e}, {p}",
    ),
    "ec": (
        "Write to {c} at {e}.",
        "{c} can be reached at {e}.",
        "Send applications to {c}, {e}.",
        "{c} answers mail sent to {e}.",
        "Refunds are paid by {c}, ask {e}.",
        "Apply at {c} via {e}.",
        "The newsletter of {c} comes from {e}.",
        "Complaints about {c}? Mail {e}.",
        "Send parcels for {c} to the person behind {e}.",
    ),
    "pc": (
        "Call {c} on {p}.",
        "{c} hotline: {p}",
        "The number of {c} is {p}.",
        "{c} picks up the phone at {p}.",
        "Need a cab? Ring {c}, {p}.",
        "Tables at {c}: {p}",
        "{p} is the front desk of {c}.",
        "Ask for {c} under {p}.",
    ),
    "ep": (
        "Reach me at {e} or {p}.",
        "Mail {e}, phone {p}",
        "call {p} or email {e}",
        "my new mail is {e} and my number {p}",
        "Either {p} or {e} works for me.",
        "{e} / {p}",
        "number: {p}, mail: {e}",
        "Send it to {e} and text {p} when done.",
    ),
}
HELD_OUT_SENTENCES = {
    "nepc": (
        "The florist for the wedding is {n} of {c}, reachable under {p} and {e}.",
        "{n} takes over at {c} next week; new mail {e}, direct line {p}.",
    ),
    "nep": ("If you find my keys: {n}, {p}, {e}.", "Our guide {n} answers on {p} and at {e}."),
    "nec": ("{n} left {c} a card with the address {e}.", "Speaker: {n} ({c}), slides from {e}"),
    "npc": ("The boiler man, {n} from {c}, picks up at {p}.",),
    "ne": ("Reply to {n}, whose address is {e}.",),
    "np": ("Text {n} when you land, {p}.",),
    "epc": ("{c} takes bookings at {p} and {e}.",),
    "ec": ("Returns go through {c}, {e}.",),
    "pc": ("Taxi? {c}, {p}.",),
    "ep": ("new details: {p} and {e}",),
}
