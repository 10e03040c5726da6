"""Sentences about contacts put together from parts, so that no sentence is seen twice; knows nothing of rules.

Sentences of the held-out list are not among them. `[a|b]` is a choice; {n}, {e}, {p}, {c} are the fields.
"""

from random import Random

from training.demo.wording import expand, fill

_TRADES = (
    "accountant architect baker barber broker builder caretaker carpenter coach cleaner consultant cook courier "
    "decorator dentist designer developer doctor driver editor engineer gardener glazier grocer inspector "
    "interpreter janitor landlady landlord lawyer lecturer mechanic midwife musician notary nurse optician painter "
    "pharmacist photographer physio pilot plasterer porter postman printer recruiter roofer secretary sitter "
    "solicitor surveyor tailor teacher technician therapist tiler trainer translator tutor vet waiter welder"
)
_TRADE = f"[{'|'.join(_TRADES.split())}]"
# Who: {n} is the person, {c} the company.
_WHO = {
    "nc": (
        "{n} [of|from|at|with|over at|, now with|, who works for|, who runs|, owner of|, head of sales at] {c}",
        "{n} ({c})",
        "{n}, {c},",
        "{n}, our [contact|man|woman|partner|person|agent] at {c},",
        f"{{n}}, the {_TRADE} [of|from|at] {{c}},",
        f"our {_TRADE} {{n}} [of|from|at] {{c}}",
        "{c}, in person {n},",
        "{c} (ask for {n})",
        "{c}, [represented by|care of|att.] {n},",
        "[Mr|Mrs|Ms|Dr] {n} of {c}",
    ),
    "n": (
        "{n}",
        "{n}",
        f"{{n}}, [my|our|the] {_TRADE},",
        f"[my|our|your|the|his|her] {_TRADE} {{n}}",
        "[my|our|your] [brother|sister|cousin|aunt|uncle|boss|colleague|neighbour|flatmate|friend] {n}",
        "{n} (the new [one|colleague|tenant|member])",
        "[Mr|Mrs|Ms|Dr] {n}",
        "a certain {n}",
    ),
    "c": (
        "{c}",
        "{c}",
        f"{{c}}, the {_TRADE}'s,",
        "the [people|team|office|front desk|support] [of|at] {c}",
        "[our|the] [supplier|client|landlord|dealer|insurer|partner] {c}",
        "a [firm|company|shop|place] called {c}",
    ),
}
_MAIL = (
    "{e}",
    "[email|e-mail|mail|email address|mail address|inbox]: {e}",
    "[email|e-mail|mail] {e}",
    "[write|send a line|send an email|send mail] to {e}",
    "[via|by mail to|by email at|through|under|at] {e}",
    "[the|an] [email|address|mail address] [is|being] {e}",
    "{e} [for documents|for invoices|for everything else|by mail|in writing|at weekends]",
    "<{e}>",
)
_PHONE = (
    "{p}",
    "[phone|tel|tel.|telephone|mobile|cell|number|hotline|office|desk]: {p}",
    "[phone|mobile|cell|tel.|extension|landline] {p}",
    "[call|ring|dial|phone|try] {p}",
    "[on|by phone at|via|by calling|under] {p}",
    "[the|a] [number|phone number|mobile number|line] [is|being] {p}",
    "{p} [in a hurry|for urgent things|during the day|after six|in the evening|at work|for questions]",
    "({p})",
)
_BETWEEN = (" and ", " or ", ", ", "; ", " / ", ", or else ", ", also ", " - ", ", otherwise ", " as well as ")
# {x} who, {y} how to reach them.
_FRAMES = (
    "{x}: {y}",
    "{x} - {y}",
    "{x}, {y}",
    "{y} - {x}",
    "[Please|Kindly|Just|You could|Better|Do] [contact|get hold of|ask|tell|inform|remind|thank|invite] {x}: {y}.",
    "{x} [can be|is best|may be|is usually|could be] [reached|found|contacted] [here|as follows]: {y}.",
    "{x} [asked|begged|wants|wishes|hopes] for [a reply|an answer|a quote|news|a second opinion], {y}.",
    "[I|We|They|She|He] [met|saw|spoke to|heard from|hired|recommended] {x} [last week|on Monday|at lunch|in May|"
    "years ago|this morning]. {y}.",
    "[Send|Forward|Pass|Give|Bring|Deliver] [it|this|that|the papers|the box|the keys|the file] to {x}, {y}.",
    "[The|Your|Our] [bill|parcel|offer|ticket|report|order|letter] [came|comes|is] from {x}; {y}.",
    "[Note to self|For the file|Reminder|FYI|To do|Important|Lost and found|Emergency]: {x}, {y}.",
    "{x} [will|should|might|cannot|could] [help|come|pay|join us|fix it|drive|decide] [today|on Friday|later|at noon]; "
    "{y}.",
    "[Who|Guess who] [called|wrote|was here|came by]? {x}. {y}.",
    "[Any|More] [questions|problems|ideas|complaints|feedback]? {x}, {y}.",
    "{y}, [that is|says|signed|asks for|belongs to|goes to] {x}.",
    "[Use|Take|Note|Keep|Save|Try] this for {x}: {y}.",
    "[Hi|Hello|Hey|Dear all|Good morning], [it is|this is|here is|you are talking to] {x}. {y}.",
    "[Thanks|Regards|Cheers|Best], {x} ({y})",
    "{x} [sold|lent|showed|sent|owes|promised] [me|us] [a bike|a sofa|a map|the plans|some wine|ten euros]. {y}.",
    "[Since|As|Because] {x} [is ill|is away|is late|has moved|was promoted], [use|take|try] {y}.",
    "[The meeting|The tour|The class|The repair|The party] is [run|led|organised|planned] by {x}, {y}.",
    "[Where is|Have you seen|Do you know] {x}? {y}.",
    "[Booked|Ordered|Paid|Rented|Bought] [from|through] {x} ({y}).",
)
_NOBODY = (
    "{y}",
    "[Reach|Find|Contact|Answer] [me|us|them] [like this|here|as before]: {y}.",
    "[I|We] [moved|am back|changed jobs|lost the old phone]: {y}.",
    "[Questions|Lost|Hungry|Late|Interested]? {y}.",
    "[Please|Just|Better|Kindly] [use|note|try|save] {y}.",
    "[Found|Seen] on the [notice board|door|label|receipt|fridge]: {y}",
)


def sentence(rng: Random, fields: dict[str, str]) -> str:
    """A sentence that gives exactly these fields."""
    who = "".join(slot for slot in "nc" if slot in fields)
    ways = [expand(rng, rng.choice(_MAIL if slot == "e" else _PHONE)) for slot in "ep" if slot in fields]
    rng.shuffle(ways)
    frame = expand(rng, rng.choice(_FRAMES if who else _NOBODY))
    named = expand(rng, rng.choice(_WHO[who])).replace(" ,", ",") if who else ""
    text = fill(frame, {"x": named, "y": rng.choice(_BETWEEN).join(ways)})
    for doubled in (",,", ",:", ",;", ",.", ", -", ",)"):
        text = text.replace(doubled, doubled[1:])
    return fill(text[:1].upper() + text[1:] if rng.random() < 0.85 else text, fields)
