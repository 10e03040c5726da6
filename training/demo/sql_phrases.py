"""Wordings and tables of the SQL task; phrases only.

A table is `name: column, ...`; a column is `name` and its type mark: `#` integer, `%` real, `$` text without listed
values, `=a|b|c` text with values. `@` gives ways to say an equality, `>`/`<` after it ways to say a comparison.
"""

from training.demo.wording import Phrasebook

# {s} is the schema. The question goes elsewhere.
TRAIN = Phrasebook(
    orders=(
        "Write [a|an|one] SQL [query|statement] [for this question|that answers the question|to answer this]",
        "Write [a|the] SQL query[| for the schema below| for this table| over this table]",
        "[Write|Give me|Generate|Create|Produce] [the SQL|a SQL query|an SQL query] for [this|the following|the "
        "question]",
        "[Translate|Turn|Convert] [the question|this question|this request|the request] [to|into] SQL",
        "[Translate|Turn|Convert] [this|the] English [question|request] into [a SQL query|SQL]",
        "Answer [this|the question] with [a SQL query|SQL|one SQL statement]",
        "Write the SELECT [statement|query] for this [question|request]",
        "[Give|Return|Output|Show] [only the SQL|the SQL query|one SQL query]",
        "Generate SQL [from the question|for the question|for this schema|from this question]",
        "Query [this|the] table with SQL",
        "Formulate [this|the question] as [a SQL query|SQL]",
        "[Express|Write] the question [in|as] SQL",
        "Create a database query (SQL) for the question",
        "Look at the schema and write the matching SQL query",
    ),
    remarks=(
        "[Use the schema to|Using the schema,] write a SQL query for the question",
        "Given the schema, write [a|the] SQL query for the question",
        "Based on [this|the] table, write [SQL|a SQL query] for the question",
        "[SQL|sql|SQL query|query|SQL statement]",
        "[text to SQL|text2sql|question to SQL|question -> SQL]",
        "[SQL|SQL query] please",
        "What is the SQL [query|statement][| for this]?",
        "What SQL [query|statement] [answers this|do I need|gives me this]?",
        "[How do I|How would I|How can I] [ask this in SQL|get this with SQL|query this in SQL]?",
        "Which SQL query answers [this|the question]?",
        "I need [a|the] SQL query for this",
        "I need SQL for [this question|this|the following]",
        "Which SELECT [do I need|gives that]?",
        "Here is a table and a question, I need the SQL",
        "You are a SQL assistant",
        "You are a SQL [expert|generator|assistant]. [Write one query|Answer with SQL only].",
    ),
    # {q} is a question, {c} an order such as "list the names of all users".
    inline=(
        "Write [a|an] SQL query to {c}[.|]\n[Table|Schema]: {s}",
        "Write [a|an] SQL query to {c}[.|]\n{s}",
        "[Given|Using] {s}, write [a SQL query|SQL] to {c}",
        "[Given|With|Using] the table {s}, write SQL to {c}",
        "[Given the schema|Schema:] {s}\n\n{C} [using SQL|in SQL|with SQL].",
        "I have a table {s}. [What SQL query|Which query] do I need to {c}?",
        "[How do I|How can I] {c} with SQL?\n[Schema|Table]: {s}",
        "SQL to {c}\n{s}",
        "{s}\n\n[Write|Give me] [a query|a SQL query|SQL] to {c}",
        "{s}\nSQL query to {c}",
        "My table is {s} and I want to {c}. [What is the SQL|Give me the SQL|SQL?]",
        "Given {s}, [write SQL for|what is the SQL for|give the SQL for]: {q}",
        "[Table|Schema]: {s}\n[Question|Q]: {q}\n[SQL|SQL query|A]:",
        "### Schema\n{s}\n### Question\n{q}\n### SQL",
        "{s}\n\n-- {q}",
        "{q} [Write SQL for|Answer in SQL for|SQL for] [the table |]{s}",
    ),
    tails=(
        "Return only the SQL.",
        "Only output SQL.",
        "One query.",
        "End with a semicolon.",
        "Just the query.",
        "SQL only.",
    ),
)

HELD_OUT = Phrasebook(
    orders=(
        "Phrase my question for the database engine, in SQL",
        "Come up with the SELECT that fetches what is asked",
        "Let the database answer: compose the statement in SQL",
        "Draft an SQL command which retrieves exactly this",
        "Put together the right SQL for what I want to know",
        "Map the request onto the schema and hand back SQL",
    ),
    remarks=(
        "What would I type at the SQL prompt?",
        "SQL equivalent of the request?",
        "I'm stuck, how does this look as a SELECT?",
        "natural language in, SQL out",
    ),
    inline=(
        "Suppose my database has {s}. Which SELECT would {c}?",
        "Database layout:\n{s}\n\nTo be answered through SQL: {q}",
        "{q}\nThe data lives in {s}; reply in SQL.",
        "As a DBA, how would you {c} given {s}? SQL, please.",
    ),
    tails=("Bare SQL.", "No commentary, SQL alone."),
)

TABLES = (
    "users: id#, name$, age#@>older than|above the age of@<younger than, city=Paris|Oslo|Rome|Lima@in|from@living in,"
    " country=France|Norway|Italy|Peru@from",
    "customers: id#, name$, email$, city=Berlin|Madrid|Boston|Leeds@in|from, age#@>older than@<younger than, points#",
    "employees: id#, name$, department=Sales|Marketing|IT|Finance@in|in the department|working in,"
    " salary#@>earning more than|paid more than@<earning less than, hire_year#@>hired after@<hired before",
    "orders: id#, customer$, status=open|shipped|paid|cancelled, total%@>worth more than@<worth less than, year#@=from",
    "products: id#, name$, category=toys|books|garden|sports@in the category|in category,"
    " price%@>costing more than|more expensive than@<cheaper than|costing less than, stock#",
    "books: id#, title$, author$, genre=fantasy|crime|poetry|history, pages#@>longer than, year#@>published after"
    "@<published before@=published in",
    "movies: id#, title$, director$, genre=comedy|drama|horror|action, year#@>released after@<released before"
    "@=released in|from, rating%@>rated above@<rated below",
    "songs: id#, title$, artist$, album$, seconds#@>longer than@<shorter than, plays#",
    "students: id#, name$, major=Physics|Biology|Law|Art@in|studying, grade%@>with a grade above, age#@>older than",
    "teachers: id#, name$, subject=Math|Music|French|Sports@teaching, salary#@>earning more than, school$",
    "courses: id#, title$, teacher$, credits#, level=beginner|advanced|expert@for level",
    "flights: id#, airline=Delta|KLM|Iberia|Finnair@operated by|of, origin=Rome|Tokyo|Lima|Oslo@from,"
    " destination=Paris|Cairo|Perth|Miami@to|going to, price%@>costing more than@<cheaper than",
    "hotels: id#, name$, city=Vienna|Prague|Lisbon|Athens@in|located in, stars#, rooms#, price%@<cheaper than",
    "cars: id#, brand=Toyota|Ford|Fiat|Volvo@made by|of the brand, model$, year#@>newer than|built after@<older than"
    "|built before, price%@<cheaper than@>costing more than, color=red|blue|black|white",
    "pets: id#, name$, species=dog|cat|rabbit|parrot@of the species, age#@>older than@<younger than, owner$",
    "patients: id#, name$, age#@>older than@<younger than, ward=A1|B2|C3|D4@in ward|on ward, doctor$, weight%",
    "doctors: id#, name$, specialty=cardiology|surgery|oncology|dermatology, hospital$, experience#",
    "invoices: id#, client$, amount%@>over@<under, status=paid|open|overdue, due_year#",
    "cities: id#, name$, country=Spain|Japan|Brazil|Kenya@in|of, population#@>with more inhabitants than, area%",
    "countries: id#, name$, continent=Africa|Asia|Europe|Oceania@in|from, population#, area#@>larger than@<smaller "
    "than",
    "players: id#, name$, team=Lions|Sharks|Bulls|Hawks@of the|playing for the, goals#@>who scored more than,"
    " position=goalkeeper|defender|striker",
    "teams: id#, name$, coach$, league=East|West|North@in league, wins#, losses#",
    "matches: id#, home_team$, away_team$, home_goals#, away_goals#, season#@=in|of",
    "payments: id#, account$, amount%@>over|of more than@<under|of less than, method=card|cash|transfer@made by|by,"
    " currency=EUR|USD|GBP@in",
    "accounts: id#, owner$, balance%, type=savings|checking|business@of type, branch=North|South|Central@at branch",
    "recipes: id#, title$, cuisine=Italian|Thai|Mexican|Indian@from the cuisine, minutes#@<taking less than, servings#",
    "restaurants: id#, name$, cuisine=Greek|Korean|French|Turkish@serving, city=Milan|Seoul|Nice@in, rating%@>rated "
    "above",
    "tickets: id#, subject$, priority=low|medium|high|urgent@with priority, status=open|closed|pending, agent$, hours%",
    "servers: id#, hostname$, region=eu|us|asia@in region|in the region, cpu_cores#, memory_gb#, "
    "os=linux|windows@running",
    "devices: id#, name$, type=phone|tablet|laptop@of type, battery#, price%@<cheaper than@>costing more than",
    "projects: id#, title$, manager$, budget%, status=active|done|planned",
    "tasks: id#, title$, assignee$, priority#, status=todo|doing|done, hours%",
    "suppliers: id#, company$, country=China|Poland|Mexico|India@from|based in, rating%, contracts#",
    "warehouses: id#, location$, capacity#, manager$, region=north|south|east|west@in the",
    "shipments: id#, carrier=DHL|UPS|FedEx|GLS@sent with|by, weight%@>heavier than@<lighter than, destination$, cost%",
    "animals: id#, name$, species=lion|zebra|otter|panda@of the species, weight%@>heavier than@<lighter than, zone$",
    "plants: id#, name$, family$, height_cm#@>taller than@<shorter than, color=green|red|yellow",
    "rivers: id#, name$, country=Egypt|Russia|India|Canada@in, length_km#@>longer than@<shorter than",
    "mountains: id#, name$, height#@>higher than@<lower than, country=Nepal|Chile|Austria|Kenya@in, first_climbed#",
    "games: id#, title$, platform=PC|Switch|Xbox@for|on, price%@<cheaper than, year#@>released after, rating%",
    "artists: id#, name$, style=cubism|baroque|pop@of the style, birth_year#@>born after@<born before, country$",
    "paintings: id#, title$, artist$, year#@>painted after@<painted before, price%, museum$",
    "events: id#, title$, city=Graz|Basel|Ghent|Turin@in, year#@=in, visitors#@>with more visitors than",
    "reviews: id#, product$, stars#, author$, language=en|de|fr@in language",
    "posts: id#, title$, author$, likes#@>with more likes than, views#, topic=food|music|travel@about|on the topic",
    "comments: id#, author$, text$, likes#, post_id#",
    "sales: id#, product$, region=North|South|East|West@in|from the region, quantity#, revenue%, year#@=in",
    "departments: id#, name$, budget%, head$, floor#@=on floor",
    "rooms: id#, building=A|B|C@in building, seats#@>with more seats than, floor#@=on floor, "
    "type=lab|office|hall@of type",
    "trains: id#, line$, operator$, speed#@>faster than@<slower than, seats#, year#",
    "houses: id#, street$, city=York|Bath|Derby@in, bedrooms#, price%@<cheaper than@>costing more than, area%",
    "stores: id#, name$, city=Dallas|Denver|Miami@in, employees#, revenue%",
    "subscribers: id#, email$, plan=free|basic|pro@on the plan|with plan, months#, country=Chile|Spain|Malta@from",
    "sensors: id#, name$, location$, temperature%, humidity%, type=indoor|outdoor@of type",
)
HELD_OUT_TABLES = (
    "bakeries: id#, name$, town=Delft|Bruges|Siena@in, ovens#, opened#@>opened after@<opened before",
    "telescopes: id#, name$, observatory$, diameter%@>larger than@<smaller than, country=Chile|Spain|Hawaii@in",
    "libraries: id#, name$, city=Cork|Malmo|Porto@in, volumes#, members#",
    "boats: id#, name$, harbor=Kiel|Split|Bergen@in|moored in, length%@>longer than@<shorter than, owner$",
    "volunteers: id#, name$, skill=driving|cooking|teaching@with the skill, hours#, age#@>older than@<younger than",
    "wines: id#, label$, grape=Merlot|Riesling|Malbec@made from, vintage#@=from, price%@<cheaper than@>costing more "
    "than",
    "satellites: id#, name$, agency=ESA|NASA|JAXA@of|launched by, mass%@>heavier than@<lighter than, launch_year#",
    "farms: id#, owner$, crop=wheat|corn|rice@growing, hectares#, county$",
    "festivals: id#, title$, month=May|June|July@in, tickets_sold#, price%@<cheaper than",
    "elevators: id#, building$, floors#, load_kg#, maker=Otis|Kone|Schindler@made by",
    "podcasts: id#, title$, host$, episodes#@>with more episodes than, topic=science|politics|humor@about",
    "museums: id#, name$, city=Bonn|Krakow|Nantes@in, visitors#, fee%@<charging less than",
)
