"""Training prompts that belong to no demo task, by category; phrases only.

Slots are filled from `SLOTS`. Categories of `OVER_TEXT` are instructions that get a text; `OVER_INPUT` are foreign
instructions over the inputs of the demo tasks, which every expert must turn down.
"""

# Word lists read better as split text than as one literal a line.
# ruff: noqa: SIM905

SLOTS: dict[str, tuple[str, ...]] = {
    "name": tuple(
        "Anna Ben Chloe David Eva Farid Grace Hugo Ines Jonas Kim Leo Mia Noor Omar Paul Rosa Sam Tom Zoe".split()
    ),
    "animal": tuple("cat dog fox whale owl bee horse snail penguin tiger bear spider shark rabbit crow otter".split()),
    "country": tuple(
        "France Japan Brazil Kenya Canada Norway Egypt India Chile Poland Vietnam Spain Peru Greece".split()
    ),
    "city": tuple("Paris Tokyo Rome Lima Cairo Berlin Lisbon Oslo Boston Prague Delhi Seoul Vienna Dublin".split()),
    "food": tuple(
        "pizza|pancakes|lentil soup|sushi|tomato sauce|apple pie|fried rice|tacos|bread|lasagne|omelette".split("|")
    ),
    "sport": tuple("football tennis chess swimming running yoga cycling climbing rowing boxing skiing golf".split()),
    "job": tuple(
        "teacher|nurse|software engineer|baker|pilot|lawyer|waiter|designer|plumber|journalist|chef".split("|")
    ),
    "lang": tuple("Python JavaScript Java C++ Go Rust C# Ruby PHP Kotlin Swift Bash TypeScript Haskell R".split()),
    "tongue": tuple(
        "French Spanish German Italian Japanese Portuguese Latin Polish Chinese Turkish Dutch Russian".split()
    ),
    "topic": tuple(
        "the ocean|autumn|friendship|time|a lost key|the moon|rain|a lonely robot|coffee|home|winter|hope|a train ride|"
        "old books|a small town|space travel|my grandmother|the sea at night|music|courage".split("|")
    ),
    "science": tuple(
        "photosynthesis|gravity|DNA|black holes|evolution|electricity|the water cycle|vaccines|plate tectonics|atoms|"
        "magnetism|inflation|entropy|osmosis|the greenhouse effect|quantum computing|neural networks|tides".split("|")
    ),
    "history": tuple(
        "the French Revolution|the Roman Empire|the Cold War|the Industrial Revolution|the Renaissance|World War I|"
        "the Silk Road|ancient Egypt|the moon landing|the printing press|the Vikings|the fall of Rome".split("|")
    ),
    "person": tuple(
        "Albert Einstein|Marie Curie|Napoleon|Cleopatra|Mozart|Gandhi|Shakespeare|Ada Lovelace|Leonardo da Vinci|"
        "Isaac Newton|Nelson Mandela|Frida Kahlo|Aristotle|Alan Turing|Charles Darwin".split("|")
    ),
    "word": tuple(
        "serendipity|ubiquitous|irony|metaphor|paradigm|entropy|nostalgia|algorithm|empathy|bureaucracy|photon|"
        "democracy|cognition|satire|resilience|hypothesis".split("|")
    ),
    "thing": tuple(
        "a bicycle|a guitar|a washing machine|a tent|a laptop|a sofa|a coffee maker|a pair of boots|a houseplant|"
        "a birthday gift|a used car|a microwave|a backpack|a camera".split("|")
    ),
    "skill": tuple(
        "tie a tie|change a tyre|boil an egg|learn to juggle|fix a leaking tap|meditate|grow tomatoes|write a CV|"
        "save money|sleep better|clean a carpet|learn a language|train a puppy|sharpen a knife|back up my phone".split(
            "|"
        )
    ),
    "problem": tuple(
        "my neighbour is too loud|I can't sleep|my boss ignores me|I feel stressed|I lost my passport|my plant is "
        "dying|"
        "I procrastinate too much|my friend is angry with me|I have a headache|my laptop is slow|I am bored".split("|")
    ),
    "tech": tuple(
        "Docker|Git|HTTP|TCP|Kubernetes|REST|Linux|DNS|OAuth|a compiler|a linked list|recursion|regex".split("|")
    ),
    "feeling": tuple("sad happy tired angry lonely nervous excited bored proud confused".split()),
    "holiday": tuple("Christmas|Easter|New Year|Halloween|my birthday|Thanksgiving|Diwali|summer".split("|")),
    "cs": tuple(
        "reverses a string|checks if a number is prime|sorts a list|computes the factorial of n|counts the words in "
        "a text|"
        "finds the largest number in a list|checks for palindromes|merges two sorted lists|reads a file line by line|"
        "computes Fibonacci numbers|removes duplicates from a list|validates an email address|parses a date string|"
        "connects to a database|writes a log file|reads JSON|downloads a web page|converts Celsius to Fahrenheit".split(
            "|"
        )
    ),
    "code": (
        "def add(a, b):\n    return a - b",
        "for i in range(10):\n    print(i)",
        "let x = [1, 2, 3].map(n => n * 2);",
        "def fact(n):\n    return n * fact(n - 1)",
        "if (x = 5) { alert('yes'); }",
        "while True:\n    pass",
        "int main() { int a[3]; a[3] = 1; return 0; }",
        "try:\n    run()\nexcept:\n    pass",
        "function hello() { consle.log('hi') }",
        "public int size() { return items.length(); }",
        'fn main() { let v = vec![1]; println!("{}", v[1]); }',
        "users = [u for u in users if u.age > 18]",
        "const total = items.reduce((a, b) => a + b.price);",
        "echo $((1/0))",
        "SELECT * FROM users WHERE name = '\" + name + \"'",
        "x = input()\nprint(x + 1)",
        "class A:\n    def f():\n        return 1",
        "import datetime\nprint(datetime.now())",
        "log.error('failed: ' + e)",
        "git push --force origin main",
    ),
    "text": (
        "The committee agreed to postpone the vote until more members could attend.",
        "Bees visit hundreds of flowers a day and carry pollen from one to the next.",
        "The old lighthouse has guided ships for two hundred years.",
        "Our team grew from three to twelve people this year, and we moved to a larger office.",
        "Water boils at a lower temperature in the mountains because the air pressure is lower.",
        "He dont know where the keys is, so we was waiting outside.",
        "The city plans to plant ten thousand trees along its main streets.",
        "Tomorrow the library opens an exhibition about the history of printing.",
        "She packed her bag, locked the door and never looked back.",
        "The company reported higher profits but warned of a difficult year ahead.",
        "Due to heavy snow, all trains to the north are delayed by about two hours.",
        "I has went to the store yesterday and buyed some milks.",
        "Researchers found that short walks improve memory in older adults.",
        "The recipe needs flour, two eggs, a pinch of salt and a cup of milk.",
        "After the match the fans celebrated in the streets until the early morning.",
        "Solar panels turn sunlight into electricity without any moving parts.",
        "Your subscription renews automatically unless you cancel it in time.",
        "The fox waited until the dogs were asleep and slipped under the fence.",
        "Dear team, the kitchen will be renovated next week, so please bring your own lunch.",
        "Congratulations, you have won a free cruise! Click here to claim your prize.",
        "My order never came and the tracking page shows an error.",
        "In 1969 two men walked on the moon while a third stayed in orbit.",
        "To whom it may concern, I would like to apply for the position of gardener.",
        "Coffee prices rose again as drought hit the main growing regions.",
        "Grandpa told us the same story every Christmas, and we loved it.",
    ),
    "list": (
        "milk, bread, eggs, apples",
        "red, green, blue",
        "Tokyo, Paris, Cairo",
        "7, 3, 9, 1",
        "dog, cat, chair, horse",
        "Mercury, Venus, Mars",
        "hammer, saw, spoon",
        "Anna 31, Ben 27, Carl 45",
    ),
}

CHAT: dict[str, tuple[str, ...]] = {
    "greetings": (
        "[hi|hello|hey|hey there|good morning|good evening|hi there|yo|howdy|greetings|sup][|!|.|, how are you?| :)]",
        "[hi|hello|hey], [my name is|I'm|it's] {name}[|.|!| here]",
        "[What's up|How's it going|How are you|How are you doing|How do you do][|?| today?]",
        "[Good night|See you tomorrow|Bye|Goodbye|Bye for now|Talk later][!|.|]",
        "[nice to meet you|long time no see|are you there|anyone there][|?|!]",
    ),
    "thanks": (
        "[Thanks|Thank you|Thx|Cheers|Many thanks][!|.|, that helped.| so much| a lot!|, you're great]",
        "[That was helpful|Great answer|Perfect|Awesome|Cool|Nice][, thanks|!|.]",
        "[No|Yes|Okay|ok|Sure|Maybe|Never mind|Got it|I see][.|!|]",
        "[Sorry|Oops], [that was wrong|I meant something else|wrong window|forget that]",
    ),
    "chitchat": (
        "I'm feeling {feeling} today[.|, what should I do?|]",
        "[What do you think about|Do you like|Tell me about] {sport}?",
        "[What is|What's] your favourite [colour|food|book|film|animal|season]?",
        "I [just|finally] [got a new job|moved to {city}|adopted a {animal}|finished my exams]!",
        "[It's raining|It is so hot|The weather is lovely] [here|in {city}] today.",
        "[Do you ever get bored|Are you a robot|Are you human|Do you dream|Can you feel|Who made you|What are you]?",
        "[What can you do|How can you help me|What are you good at]?",
        "Tell me something [interesting|funny|nice|I don't know].",
        "[I love|I miss|I can't stand] {food}.",
        "My {animal} [is called {name}|ran away|ate my homework|sleeps all day].",
        "[Guess what|You won't believe it], I [won|met|saw] [a prize|an old friend|a {animal}] today",
        "Let's [talk about {sport}|chat|play a game].",
        "How was your [day|weekend]?",
        "I had {food} for [lunch|dinner|breakfast]. What about you?",
    ),
    "advice": (
        "{problem}. [What should I do|Any advice|Can you help|What would you do]?",
        "How can I [deal with it|get better|cope] when {problem}?",
        "Should I [quit my job|move to {city}|buy {thing}|become a {job}|learn {tongue}]?",
        "[Give me|I need] [some |]advice on [dating|saving money|making friends|studying|public speaking].",
        "[How do I|What is the best way to] tell my [boss|friend|mother] that I [quit|am moving|forgot]?",
        "[Is it normal|Is it okay] that {problem}?",
    ),
    "opinions": (
        "[Which is better|What do you prefer], [tea or coffee|cats or dogs|books or films|Mac or Windows|{city} or "
        "Rome]?",
        "[Is|Do you think] {sport} [overrated|fun|difficult|a real sport]?",
        "What is the best [film|song|book|city|{food}] of all time?",
        "[Do you agree|What's your view] that [homework should be banned|money makes us happy|robots will take our "
        "jobs]?",
        "Pros and cons of [remote work|nuclear power|social media|electric cars|living in {city}]",
    ),
    "roleplay": (
        "[Pretend|Imagine] you are [a pirate|a king|{person}|a {animal}|a detective|an alien]. [Say hello|Introduce "
        "yourself|What do you see?]",
        "Act as [a doctor|a travel guide|a job interviewer|my teacher|a Linux terminal|a chess opponent][.| and ask "
        "me a question.]",
        "You are {person}. [Tell me about your day|What do you regret?|Explain your work.]",
        "[Let's role-play|Play the role of] [a shopkeeper|a dragon|a taxi driver] [and a customer|and greet me].",
        "You are a helpful assistant. [Say hi|Who are you?|Tell me a fact about {animal}s.]",
    ),
    "riddles": (
        "[Tell me a riddle|Give me a riddle about {topic}|Ask me a hard riddle].",
        "What has [keys but can't open locks|hands but can't clap|a neck but no head|teeth but can't bite]?",
        "[Solve this riddle|Riddle]: the more you take, the more you leave behind. What am I?",
        "I speak without a mouth and hear without ears. What am I?",
        "[Give me|Make] a brain teaser [about {animal}s|for kids|with numbers].",
        "If a {animal} and a half eats a bun and a half in a day, how many buns do nine {animal}s eat?",
    ),
    "philosophy": (
        "What is the meaning of [life|happiness|freedom|truth|justice]?",
        "[Do we have free will|Is time real|Does God exist|Can machines think|What is consciousness|Why is there "
        "something]?",
        "Explain [stoicism|utilitarianism|existentialism|Plato's cave|the trolley problem][| briefly| to a child].",
        "Is it [ever right to lie|wrong to eat meat|better to be feared or loved]?",
    ),
}

KNOWLEDGE: dict[str, tuple[str, ...]] = {
    "arithmetic": (
        "[What is|Calculate|Compute|Work out|] {n} [+|-|*|/|times|plus|minus|divided by] {m}[|?| =]",
        "{n} [+|-|*|x] {m} [=|= ?|]",
        "[What is|Find] {n}% of {m}?",
        "[Square root|Cube|Square|Half|Double] of {m}",
        "[Solve|Solve for x]: {n}x + {m} = {k}",
        "Is {m} [prime|even|odd|divisible by {n}]?",
        "[Add|Multiply|Sum] {n}, {m} and {k}",
        "Round {n}.{m} to one decimal",
        "What is the average of {n}, {m} and {k}?",
        "[Convert|Change] {m} [km to miles|kg to pounds|euros to dollars|feet to metres|Fahrenheit to "
        "Celsius|minutes to hours]",
        "[Convert|Write] {m} [to binary|to hexadecimal|in Roman numerals|in words]",
        "[What is|Simplify] {n}/{m} [as a decimal|as a percentage|in lowest terms]?",
        "How many [seconds|minutes] are in {n} [hours|days|weeks]?",
    ),
    "word problems": (
        "{name} has {n} apples and buys {m} more. How many apples does {name} have now?",
        "A train travels {m} km in {n} hours. What is its speed?",
        "If one ticket costs {n} euros, how much do {m} tickets cost?",
        "A shirt costs {m} dollars and is reduced by {n}%. What is the new price?",
        "{name} is {n} years older than Max, who is {m}. How old is {name}?",
        "A rectangle is {n} m wide and {m} m long. What is its area?",
        "{n} workers need {m} hours. How long do twice as many need?",
    ),
    "maths": (
        "[Prove|Show] that [the square root of 2 is irrational|there are infinitely many primes|the sum of two odd "
        "numbers is even].",
        "[What is|Find] the derivative of [x^{n}|sin(x)|e^x|ln x|{n}x^2 + {m}x]",
        "[Integrate|Find the integral of] [x^{n}|cos x|1/x|{n}x]",
        "[State|Explain|Prove] [Pythagoras' theorem|the binomial theorem|the chain rule|Bayes' theorem].",
        "What is the probability of rolling [two sixes|a sum of {n}|an even number]?",
        "[Expand|Factorise] (x + {n})(x - {m})",
        "What is a [prime number|vector|matrix|limit|logarithm|standard deviation]?",
    ),
    "facts": (
        "What is the capital of {country}?",
        "[Who was|Who is|Tell me about] {person}?",
        "[How many people live|What language do they speak|What do people eat] in {country}?",
        "[When did|Why did] {history} [begin|end|happen|matter]?",
        "When was {person} born?",
        "[How tall is|Where is|Who built] [the Eiffel Tower|Mount Everest|the Great Wall|Big Ben|the Taj Mahal]?",
        "[How long does a|What does a|Where does the|How fast is a] {animal} [live|eat|sleep|move]?",
        "[Who wrote|Who painted|Who composed|Who directed] [Hamlet|Guernica|The Magic Flute|Don Quixote|1984|Jaws]?",
        "What is the [largest|smallest|longest|deepest|oldest] [ocean|country|river|lake|planet|city]?",
        "[Why is the sky blue|Why do cats purr|How do planes fly|How does WiFi work|Why do leaves fall]?",
        "What [currency|continent|flag|religion] [does|has] {country}[| have]?",
        "Which [planet|metal|element|gas] is the [lightest|heaviest|hottest|most common]?",
    ),
    "definitions": (
        "[Define|What does it mean:|Meaning of|What is the definition of] {word}",
        "What [does {word} mean|is meant by {word}]?",
        "[Explain|Describe] the term {word}[| in simple words].",
        "[Synonyms|Antonyms|A synonym|Another word] for {word}[|?]",
        "Use {word} in a sentence.",
        "What is the [difference|connection] between {word} and [luck|fate|logic|sympathy]?",
        "What does [NASA|HTML|DNA|RSVP|CEO|GDP|FAQ|UNESCO|PDF|USB] stand for?",
    ),
    "science": (
        "[Explain|Describe|What is|How does one explain] {science}[?|.| to a five-year-old| in one paragraph| simply]",
        "How does {science} work?",
        "[Why is|Why does] {science} [important|matter]?",
        "[Give|Name] three facts about {science}.",
        "What would happen without {science}?",
        "What is the formula for [water|kinetic energy|speed|salt|the area of a circle]?",
    ),
    "history": (
        "[Summarise|Explain|Tell me about|Describe] {history}[.| in three sentences.]",
        "What [caused|ended|were the effects of] {history}?",
        "Who [ruled|lived|fought] during {history}?",
        "[Make|Write] a timeline of {history}.",
        "What did {person} [do|invent|write|believe]?",
    ),
    "health": (
        "[What helps against|What causes|How do I treat] [a cold|a headache|back pain|a sunburn|hiccups|acne]?",
        "How much [water|sleep|exercise|sugar] [should I have|do I need] a day?",
        "Is {food} [healthy|good for you|high in calories]?",
        "[What are the symptoms of|Explain] [the flu|diabetes|anaemia|asthma|stress]?",
        "[Give me|Make] a [workout plan|stretching routine|healthy breakfast idea].",
    ),
    "law": (
        "[Can my landlord|Is my boss allowed to] [raise the rent|fire me without notice|enter my flat|read my mail]?",
        "What is [copyright|a contract|small claims court|the GDPR|a tort|bail]?",
        "Do I need a [visa|licence|lawyer|permit] [to work in {country}|to sell {food}|to fly a drone]?",
        "How do I [file taxes|register a company|write a will|open a bank account] in {country}?",
        "[What is a mortgage|How do interest rates work|Explain compound interest|What is an index fund|Should I "
        "buy bonds]?",
    ),
    "technology": (
        "[What is|Explain|How does one use] {tech}[?|]",
        "[Why is|How do I fix] my [phone|laptop|WiFi|printer|browser] [slow|not working|so hot]?",
        "[Difference between|Compare] {tech} and [SSH|FTP|Bash|JSON|XML|a framework].",
        "How do I [install|update|uninstall|learn] {tech}?",
        "[Best|Recommend a] [phone|laptop|browser|text editor] for [students|gaming|old people]",
    ),
    "non-English": (
        "[Hola|Bonjour|Hallo|Ciao|Olá|Hej|Merhaba|Cześć][!|, ¿cómo estás?|, ça va ?|, wie geht's?|]",
        "¿[Cuál es la capital de|Dónde está] [Francia|Chile|Japón|Perú]?",
        "[Wie spät ist es|Was ist die Hauptstadt von Frankreich|Erzähl mir einen Witz|Was kann man heute kochen|Wer "
        "bist du]?",
        "[Quelle est la capitale de l'Italie|Raconte-moi une histoire|Comment faire des crêpes|Qui es-tu] ?",
        "[Come si dice amore in inglese|Dammi una ricetta per la pasta|Chi era Dante]?",
        "[Qual é o maior país do mundo|Conta uma piada|Como está o tempo]?",
        "[Schreib ein Gedicht über|Erkläre mir] [den Herbst|das Meer|die Schwerkraft|Freundschaft].",
        "[Écris un poème sur|Explique-moi] [la mer|l'amour|la gravité|l'automne].",
        "[Привет, как дела?|你好|こんにちは|안녕하세요|مرحبا|Привет|今日は何をしますか|你叫什么名字？|Как тебя зовут?]",
    ),
}

WRITING: dict[str, tuple[str, ...]] = {
    "poems": (
        "[Write|Compose|Give me] [a poem|a haiku|a limerick|a sonnet|a short verse|two rhyming lines] about "
        "{topic}[.|]",
        "[Can you write|Could you write|Please write] [a poem|a rhyme|a haiku] [about|on] {topic}?",
        "[Poem|Haiku|Rhyme] about {topic}",
        "Write [a love poem|a birthday poem|a funny poem] for {name}.",
        "Finish this poem: [Roses are red|The night was still|Upon a hill a {animal} sat]",
    ),
    "stories": (
        "[Write|Tell me|Invent] [a story|a short story|a bedtime story|a fairy tale|a scary story] about [{topic}|a "
        "{animal}|{name}][.|]",
        "Continue the story: [Once upon a time a {animal} lived in {city}|The door opened slowly|It was a dark night].",
        "[Write|Give me] [the opening line|a plot|a character|a title] for [a novel|a crime story|a film] about "
        "{topic}",
        "[Write|Make up] a dialogue between a {animal} and a {job}.",
        "Write a [song|rap|lyrics] about {topic}",
    ),
    "jokes": (
        "[Tell me|Give me|Know] [a joke|a pun|a good joke|a knock-knock joke][| about {animal}s| about a {job}][.|?|]",
        "[Make me laugh|Say something funny|Joke please|Explain this joke: why did the chicken cross the road].",
        "Why is [a {animal}|a {job}|{food}] funny?",
    ),
    "e-mails": (
        "Write [an e-mail|a short email|a polite mail] to [my boss|a client|my landlord|{name}|a {job}] "
        "[asking for a day off|saying thank you|about a broken heater|to reschedule our meeting|to apologise].",
        "[Draft|Compose] [an email|a message] [inviting {name} to dinner|declining an offer|announcing {holiday} "
        "plans].",
        "Reply to this mail: Hi, can we meet on Friday? Best, {name}",
        "[Write|Suggest] a subject line for a mail about {topic}.",
        "[How do I|How should I] [start|end|sign] a formal e-mail?",
    ),
    "letters": (
        "Write a [cover letter|letter of complaint|love letter|letter of recommendation|thank-you "
        "letter|resignation letter] "
        "[for a {job}|to {name}|].",
        "[Write|Draft] a [birthday card|postcard|wedding speech|toast|condolence note] [for|to] {name}.",
        "Write a [LinkedIn post|tweet|caption|slogan|product description|press release|blog post] about "
        "[{topic}|{thing}|{food}].",
        "Write an essay about [{science}|{history}|{topic}].",
    ),
    "lists": (
        "[List|Name|Give me] [five|three|ten|some|{n}] [animals|fruits|countries|rivers|films|books|composers|ideas "
        "for {holiday}]",
        "[Name|List] [five|three] things [to do in {city}|to pack for {country}|to eat with {food}|a {job} needs].",
        "[Sort|Alphabetise|Count|Reverse|Shuffle] this list: {list}",
        "[Which does not belong|Find the odd one out]: {list}",
        "[Make|Write] a [shopping list|to-do list|checklist|packing list] for {holiday}.",
        "Top [three|five|ten] [beaches|museums|dishes|songs] [in|of] {country}",
    ),
    "recipes": (
        "[Give me|What is|I need|Write] a [simple |]recipe for {food}[.|?|]",
        "How do I [make|cook|bake|reheat|freeze] {food}?",
        "What can I cook with [eggs and rice|tomatoes|leftover chicken|potatoes and cheese]?",
        "[What goes well|Which wine goes] with {food}?",
        "How long does {food} [take|keep|need in the oven]?",
    ),
    "travel": (
        "[Plan|Suggest] a [weekend|week|three-day trip] in [{city}|{country}].",
        "[What should I see|Where should I eat|How do I get around] in {city}?",
        "[Best time|Cheapest way|Is it safe] to travel to {country}[?|]",
        "How far is {city} from [London|New York|Sydney|Madrid]?",
        "What should I pack for [a trip to {country}|camping|a week at the beach]?",
    ),
    "how-to": (
        "How [do I|can I|to] {skill}[?|]",
        "[Explain|Show me|Teach me] how to {skill}[.| step by step.]",
        "[What do I need|What is the first step] to {skill}?",
        "Steps to {skill}",
    ),
    "planning": (
        "[Make|Create|Write] a [study plan|weekly schedule|budget|workout plan|meal plan] for [a {job}|a "
        "student|{name}].",
        "Help me plan [a party|a wedding|{holiday}|a move to {city}|a garden].",
        "How should I prepare for [an interview as a {job}|a marathon|an exam|a long flight]?",
        "[What are good goals|Give me ideas] for [this week|the new year|a rainy day]?",
    ),
    "comparison": (
        "[Compare|What is the difference between] [{country} and Italy|a {animal} and a wolf|{food} and "
        "curry|{sport} and rugby][.|?|]",
        "{lang} [vs|or|versus] [Perl|Scala|Lua][|?]",
        "Which is [bigger|older|cheaper|faster], [{city} or Rome|{country} or Italy|a {animal} or a mouse]?",
        "What should I look for when buying {thing}?",
    ),
    "everyday": (
        "[How often should I|When should I|How do I] [water a cactus|wash my car|walk my dog|cut my hair|change bed "
        "sheets]?",
        "[What is a good|Recommend a|I need a] [film|book|podcast|board game|song|TV series|hobby] [for "
        "{name}|about {topic}][?|.|]",
        "[Why does|Why is] my {animal} [bark|hide|look at me|chew everything|so fat]?",
        "[What should I wear|What gift do I bring|What do I say] [to a wedding|at a funeral|on a first date|to "
        "{holiday}]?",
        "[How do I get|What removes] [wine|coffee|ink|oil|chewing gum] [out of a carpet|from a shirt]?",
        "[Will it rain|How cold is it] in {city} [tomorrow|in winter|right now]?",
        "Who [won|plays in|scored in] the last [World Cup|Super Bowl|Champions League final]?",
        "[Explain the rules of|How do you win at|How long is a game of] [chess|poker|{sport}|Monopoly|bridge][?|]",
    ),
    "business": (
        "[Write|Draft|Outline] a [business plan|marketing plan|pitch|mission statement] for [a {animal} cafe|a "
        "{food} shop|an app].",
        "[How do I|What is the best way to] [find customers|price my product|hire a {job}|run a meeting|ask for a "
        "raise]?",
        "[What is|Explain] [a start-up|supply and demand|a balance sheet|brand loyalty|cash flow|inflation][?|]",
        "[Interview questions|Job description|Salary] for a {job}",
        "[Give me|List] [five|three] [slogans|names|ideas] for a [{food}|{thing}] [shop|brand].",
    ),
    "school": (
        "Help me with my [maths|history|biology|physics] homework[.|: what is {science}?|: explain {history}]",
        "[Quiz me|Test me|Make flashcards] on [{science}|{history}|{tongue} verbs].",
        "[Summarise|Explain|Who is the hero of] [Hamlet|Faust|Moby Dick|The Odyssey|Animal Farm] [in short|for an "
        "exam]",
        "How do I [study for an exam|cite a website|write a thesis|take notes]?",
        "[Conjugate|Decline] [to be|to go|amare|haben] in {tongue}",
        "[Spell|How do you pronounce|What is the plural of] [mouse|onomatopoeia|cactus|rhythm|{word}]",
    ),
    "names": (
        "[Suggest|Give me|I need] [a name|five names|a funny name] for [my {animal}|a cafe|a band|a start-up|a "
        "boat][.|]",
        "What does the name {name} mean?",
        "[Nicknames|Surnames|Rhymes] for {name}",
        "Invent a [superhero|planet|brand] name.",
    ),
}

CODE: dict[str, tuple[str, ...]] = {
    "code writing": (
        "Write [a function|a program|a script|code|a {lang} function] that {cs}[.| in {lang}]",
        "Write [a function|code|a snippet] in {lang} that {cs}",
        "[How do I|How can I|How to] [loop over a list|read a file|sort an array|parse JSON|make a web request] in "
        "{lang}?",
        "{lang} [hello world|for loop|function example|class example|dictionary|string formatting]",
        "[Give me|Show me] [an example of|a] {tech} in {lang}",
        "Write a regex [for phone numbers|for email addresses|for dates like YYYY-MM-DD|that matches {n} digits]",
        "Write [HTML for a login form|CSS to centre a div|a Dockerfile for {lang}|a Makefile|a unit test in {lang}]",
        "Implement [binary search|quicksort|a stack|a queue|a hash map|tic-tac-toe] in {lang}",
    ),
    "code review": (
        "Review this code:\n{code}",
        "[Can you review|Please review|Do a code review of] [this|my] [code|function|snippet]?\n\n```\n{code}\n```",
        "[Is this code good|Any comments on this code|How can I improve this code|Refactor this]:\n{code}",
        "[What do you think of|Suggest improvements for|Clean up] this code?\n{code}",
        "```\n{code}\n```\n[Is this safe|Is this idiomatic|Please review|Any bugs|Improve this]?",
    ),
    "debugging": (
        "[Why does this fail|What is wrong with this|Find the bug in|Fix] [this code|this][?|:]\n{code}",
        "{code}\n\n[Why doesn't this work|What is the error|Fix it]?",
        "I get [a NullPointerException|IndexError: list index out of range|a segmentation fault|error 404|a syntax "
        "error] in {lang}. Why?",
        "What does [TypeError: x is not a function|segmentation fault|error 137|undefined is not an object|CORS "
        "error] mean?",
        "My {lang} program [crashes|is slow|hangs|leaks memory|prints nothing]. [What can I do|How do I debug it]?",
    ),
    "code reading": (
        "[What does this code do|Explain this code|Explain this line by line|What does this print]?\n{code}",
        "[Translate|Port|Convert] this [code|snippet] to {lang}:\n{code}",
        "[Add comments to|Write tests for|Document|Add type hints to] this:\n{code}",
        "[What is the complexity of|Name this function]:\n{code}",
    ),
}

NEAR: dict[str, tuple[str, ...]] = {
    "near dates": (
        "What day [of the week |]was {date}?",
        "[Which weekday|What weekday] [is|was] {date}?",
        "How many days [until|till|are left until] [{holiday}|{date}]?",
        "How many days are [between|there from] {date} [and|to] {date2}?",
        "[What happened|Who was born|What was the weather] on {date}?",
        "[What is|What's] [today's date|the date today|the time|the date tomorrow]?",
        "[When is|What date is|When was] {holiday} [this year|next year|in 2030]?",
        "[Add|Subtract] {n} days [to|from] {date}",
        "Is {date} [a weekend|in a leap year|before {date2}|a holiday]?",
        "[Convert|Write|Change] {date} [to|into|as] [DD/MM/YYYY|MM/DD/YYYY|words|a Unix timestamp|Roman numerals|US "
        "format]",
        "[Write|Say|Spell] {date} in [{tongue}|words|full].",
        "What is ISO [8601|9001|27001|3166]?",
        "[Why do Americans write|Who invented|Explain] [the month first|the calendar|leap years|the Gregorian "
        "calendar]?",
        "[How old am I if I was born|How old is someone born] on {date}?",
        "[Remind me|Schedule a meeting|Book a table] on {date}.",
        "[What zodiac sign|Which season|Which quarter|What moon phase] is {date}?",
        "Write a [diary entry|poem|story] [for|about] {date}.",
        "[Parse dates|Format a date|Add days to a date|Convert a date to ISO 8601] in {lang}",
        "What time is it in {city} [now|when it is noon in London]?",
        "[Convert|Change] {n} pm [to 24-hour time|from CET to EST|to UTC]",
        "Which year [did {history} start|was {person} born in|comes after 1999]?",
        "Which of these dates is [earlier|later]: {date} or {date2}?",
        "[Tell me|Give me] a fun fact about {date}.",
        "What century is {date} in?",
    ),
    "near sql": (
        "[What does|What is] SQL [stand for|used for|good at]?",
        "[Explain|What is|When do I use] [a LEFT JOIN|GROUP BY|a primary key|an index|a foreign key|HAVING|a view|a "
        "subquery][?|]",
        "[Optimise|Optimize|Speed up|Explain|Review|Debug|Comment|Format|Simplify] this [query|SQL|SQL query]: {query}",
        "What does this [query|SQL|SQL query] [do|return|mean]? {query}",
        "{query}\n[Explain this|What does it do|Translate it to English|Is this query safe|Why is it slow]?",
        "[Convert|Translate|Rewrite] this SQL [to|as|in] [pandas|MongoDB|plain English|{lang}|dplyr|an ORM call]: "
        "{query}",
        "[Difference between|Compare] [SQL and NoSQL|MySQL and Postgres|WHERE and HAVING|UNION and UNION ALL|DELETE "
        "and TRUNCATE]",
        "[Design|Propose|Create] a [database schema|data model|set of tables] for [a library|a shop|a hospital|a "
        "school].",
        "How do I [install MySQL|back up Postgres|create an index|prevent SQL injection|normalise a table|reset a "
        "password]?",
        "{schema}\n[What is this table for|Explain this schema|Is this normalised|Suggest an index|Add a column for "
        "the phone number]?",
        "[Describe|Review|Document|Improve|Criticise] this [schema|table|database schema]:\n{schema}",
        "[Write|Generate] [sample data|five fake rows|a Python class|a Pydantic model|documentation|a migration] "
        "for this table:\n{schema}",
        "{schema}\n\n[Draw an ER diagram|Convert this to a TypeScript interface|Translate the column names into "
        "{tongue}]",
        "[Write|Give me] a [MongoDB|Cypher|GraphQL|Elasticsearch|pandas] [query|expression] that lists all users.",
        "[Who invented|What is the history of] SQL?",
        "[Tell me a joke about|Write a poem about] [databases|SQL]",
        "You are a [SQL|database] [expert|tutor]. [What is a join?|Quiz me.|Explain indexes.|Where should I start "
        "learning?]",
        "I have a table {schema}. [How large will it get|What is a good primary key|Should I split it up|How do I "
        "back it up]?",
        "How do I [query|read] [a CSV|an Excel sheet|JSON] in {lang}?",
    ),
    "near logs": (
        "Why does [nginx|apache|my server|the API] return [502|404|500|503|403]?",
        "What does HTTP [status |code |][404|500|301|418|503] mean?",
        "[Explain|What is wrong here|What does this log line mean|What happened here|How do I fix this]: {log}",
        "{log}\n\n[What does this mean|Why did this happen|How do I fix it|Is this dangerous|Explain it to a "
        "beginner]?",
        "[Summarise|Summarize|Translate|Shorten|Explain|Anonymise] this log[| line| entry| file]: {log}",
        "Is this log [line|entry] [an error|an attack|normal|critical]? {log}",
        "[Write|Give me] [a regex|a Python script|a grok pattern|an awk command|code] [to parse|for|that parses] "
        "[nginx|Apache|syslog|these] logs.",
        "Write a [regex|parser in {lang}] for this log line:\n{log}",
        "How do I [rotate|tail|delete|filter|compress|find] [log files|logs] [on Linux|in Docker|in Kubernetes]?",
        "[What is|Explain] [syslog|structured logging|logrotate|a log level|journalctl|log4j|the ELK stack]?",
        "What is the difference between [WARN and ERROR|DEBUG and INFO|logs and metrics]?",
        "[How do I log|Set up logging|Log to a file] in {lang}",
        "{log}\nWho should I call about this?",
        "[Write|Draft] [an incident report|a bug report|a Slack message] about: {log}",
        "[Only|Just] the [IP address|status code|error level|time] in this line: {log}",
        "What is log({n})?",
        "You are a [log parser|site reliability engineer]. [What can you do?|Explain log levels.|Where should logs "
        "be stored?]",
        "[Write a captain's log|Keep a reading log|How do I split a log with an axe]",
    ),
    "near reviews": (
        "Write a [positive|negative|funny|short|five-star] review of [{thing}|a hotel in {city}|a {food} place]",
        "[Translate|Put] this review [into|to] {tongue}: {review}",
        "[Summarise|Summarize|Shorten|Rephrase|Paraphrase|Improve|Proofread] this review: {review}",
        "[Reply|Respond|Write a reply] to this review: {review}",
        "{review}\n[Write a polite answer to this customer|Translate this into {tongue}|Summarise in five words|Fix "
        "the grammar]",
        "How many words are in this review? {review}",
        "[What product is this about|What is being reviewed|Is this about a hotel or a phone|Which aspects are "
        "mentioned]? {review}",
        "[Is this review fake|Was this written by a human|Is this spam|Did a bot write this]? {review}",
        "[How do I write|Tips for writing|What makes] a good [product|film|restaurant] review?",
        "[Make this review sound more|Rewrite this review to be] [polite|angry|funny|positive|formal]: {review}",
        "What [star rating|number of stars] from 1 to 5 would this be? {review}",
        "What is [sentiment analysis|a neutral atom|a negative number|the positive pole|tone of voice]?",
        "[Give this review a title|Suggest a headline]: {review}",
        "You are a [critic|sentiment classifier]. [How do you work?|Which films do you like?|What is a neutral tone?]",
        "[Write|Plan] a [sentiment classifier in {lang}|survey for customers]",
        "[Detect the language|Which language is this]: {review}",
        "What [emotion|feeling] [does the author have|is this]: [anger, joy, fear or sadness|joy or anger]? {text}",
        "[Is this spam or not spam|Spam or ham]? {text}",
        "[Classify|Sort] [the topic of this text|this text as sports, politics or science|this as question or "
        "statement]: {text}",
        "[Is this text formal or informal|Is this true or false|Is this sarcastic]? {text}",
    ),
    "near contacts": (
        "Write [an email|a short mail|an invitation] to [jane@x.com|{name}@example.com|info@acme.com][ about lunch| "
        "to say hello|].",
        "[Whose card is this|What is the email address|What's the phone number|Which company is it] [here|in this "
        "text]? {contact}",
        "{contact}\n[What is the phone number|What is the email|Who is this|Which country is this number from]? "
        "[Only the value.|]",
        "[Translate|Spell-check|Proofread|Shorten|Summarise|Rewrite|Format nicely] this [signature|business "
        "card|text]: {contact}",
        "{contact}\n\n[Write a greeting to this person|Write a reply|Say thank you to them|Turn this into a "
        "rhyme|Make it a badge]",
        "[Invent|Make up|Generate] [a fake contact|five fake names|a business card|an email signature] for a {job}.",
        "[Design|Write] [a business card|an email signature] for {name}, {job}.",
        "[How do I|How can I] [contact {name}|add a contact on my phone|block a number|find an email address|export "
        "contacts]?",
        "What is the [phone number|email|address] of [the White House|Apple support|my doctor|the nearest pizza "
        "place]?",
        "[Is|Check if] [info@acme|jane.doe@x.com|+49 30 1234] [is |]a valid [email|phone number|address]?",
        "[Convert|Turn] this contact [to|into] [a vCard|CSV|XML|YAML|a table|HTML]: {contact}",
        "[Mask|Remove|Redact|Hide|Censor] the personal data in: {contact}",
        "[Should I call or write|Is it rude to call] {name}?",
        "What country code is +{n}{m}?",
        "[Call|Text|Ping] {name} for me",
    ),
    "near json": (
        "[Convert|Turn] this [recipe|list|product|text|shopping list] [to|into] JSON: {list}",
        "[Give me|Write] [a JSON example|an example of JSON|a JSON schema|a YAML file] for [a book|a pizza order|a "
        "user profile|a car].",
        "[Extract|List] the [ingredients|places|numbers|verbs|nouns|keywords|animals|main topic] [from|in] [this "
        "text|the text]: {text}",
        "[What is|Explain] [JSON|YAML|XML|CSV|TOML][?|]",
        "[Is this valid JSON|Fix this JSON|Pretty-print this JSON|Minify]: {{'name': 'Ann', 'age': {n}}}",
        '[Convert|Turn] this JSON [to|into] [CSV|YAML|XML|a Python dict]: {{"a": {n}, "b": {m}}}',
        "[Extract|Return] [the ingredients|title and author|all colours|the product and the price] as JSON: {text}",
        "[Convert|Turn] the [CSV|table|URL] into JSON: id,name;{n},{name}",
        "[Parse|Split] this [URL|address|sentence|file path] [into its parts|]: https://example.com/a/b?x={n}",
        "[Parse|Extract] the [price|quantity|colour|temperature] from: {n} blue chairs for {m} dollars",
    ),
}

OVER_TEXT: dict[str, tuple[str, ...]] = {
    "translation": (
        "Translate [this|the following|the text] [to|into] {tongue}",
        "How do you say this in {tongue}",
        "What is this in {tongue}?",
        "{tongue} translation",
        "Put this into {tongue}",
    ),
    "summarising": (
        "[Summarise|Summarize|Sum up] [this|the text|the following][| in one sentence| in five words| briefly]",
        "[TL;DR|tldr|Summary please|Main point?]",
        "What is [the main idea|this about|the key message]?",
        "[Give|Write] [a headline|a title|a one-line summary|bullet points] for this text",
    ),
    "rewriting": (
        "[Rewrite|Rephrase|Paraphrase] [this|the sentence|the text][| in simple words| politely| as a question]",
        "[Make this|Make it] [shorter|longer|more formal|friendlier|funnier|clearer|sound like Shakespeare]",
        "[Turn|Change] this into [the past tense|passive voice|a question|a tweet|a poem|a headline]",
        "Say this [differently|in plain English|like a pirate]",
        "[Expand|Continue|Complete] this text",
    ),
    "grammar": (
        "[Correct|Fix|Check] the [grammar|spelling|punctuation|mistakes]",
        "[Proofread|Correct] this [sentence|text]",
        "Is this sentence correct?",
        "[Find|List] the [verbs|nouns|adjectives|subject] in this sentence",
        "Which tense is this?",
        "How many words [are in this|does this have]?",
    ),
    "topic and style": (
        "[What is the topic|Which category fits|Classify the topic]: sports, politics, science or business?",
        "[Is this|Classify as] fact or opinion?",
        "What [language|style|tense|genre] is this?",
        "Who might have written this?",
        "[Is this|Decide if this is] spam?",
        "Rate the readability from 1 to 10",
    ),
    "questions about text": (
        "[What happens here|Who is mentioned|Where does this take place|Why|What is the reason]?",
        "[Ask|Write] [three questions|a quiz question] about this text",
        "[Explain|Comment on] this [text|sentence|statement]",
        "[Extract|List] the [keywords|names|numbers|places] in the text",
        "Is [this|the statement] true?",
        "Write an answer to this",
        "What follows from this?",
    ),
}
SINGLE = (
    "banana lamp yes no why help test ok hmm what stop go blue 42 7 hello? asdf qwerty lol ... ? ! .  a x 1+1 pizza "
    "weather music love Einstein football Python SQL date log review contact JSON ISO email sentiment null undefined "
    "foo bar lorem ipsum abc 123 :) ?? idk brb omg cats universe time money water who where when how maybe never start"
).split()
