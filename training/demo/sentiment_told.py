"""Reviews that tell instead of judging: irony, comparisons, little stories; phrases only.

`[a|b]` is a choice. None of them is among the held-out reviews.
"""

TOLD = {
    "positive": (
        "[Tried|I tried|We compared] [ten|several|all the] [brands|places|others], [this one wins|none comes "
        "close to this|this is miles ahead].",
        "[Better|Far nicer|More fun] than [anything|all the others] [I|we] [had|have tried] [before|so far].",
        "[My|Our] [husband|sister|boss|son] [laughed at me|was against it|had doubts] [at first|in the "
        "beginning], now [he|she] [uses it daily|won't share it|wants one too].",
        "[Nobody|No one] [else|but me] gets to [touch|borrow|use] it [any more|now], [it is mine|I'm that fond of it].",
        "[I|We] [was|were] [wrong|mistaken] to [doubt|hesitate]: it is [lovely|first class|a delight].",
        "[Why|How] did [I|we] [wait|hesitate] so long? [Buy it|Go|Just get it].",
        "[Fast|Clean|Honest], [friendly|kind|fair], [cheap|on time|tidy]. [Nothing is missing|What else is there "
        "to wish for|All one can ask].",
        "[Nothing|Not one thing] I'd [do|want|have] [differently|otherwise|changed].",
        "[Costs|It costs] [little|next to nothing], [gives|delivers] [a lot|so much|everything].",
        "[The start|The beginning|The first part] [is|was] [slow|weak|dull], [but|yet] the [end|rest|finish] "
        "[blew me away|had us on our feet|is magnificent].",
        "[Glad|Happy|Relieved] [I|we] [changed|moved|came] [to them|here|over].",
        "[The traffic|The stairs|The noise outside] [is|are] [a pain|annoying], [still|yet] [I'd|we'd] [come "
        "back|return] [any day|tomorrow], it is that good.",
        "[My|Our] [kids|parents|neighbours|colleagues|guests] [keep asking|ask every day] [when we go again|for more].",
        "[I|We] [stayed up|sat there] [until three|all night] because [I|we] could not [stop|put it down].",
        "[Ten|Five|Two] [years|months] [on|later] and it still [works|looks|feels] as [good|quick] as [on day "
        "one|the first day].",
        "[I|We] [bought|ordered] a second one [for the office|for my mother|straight away|the very next day].",
        "[Where|How] [has this|was this] been [hiding|all my life]?",
        "[If I could|I would] give [six|seven] [stars|stars out of five], I [would|'d do it].",
        "[The owner|The waiter|The nurse|The driver|The clerk] [remembered|knew] [my name|our order|what we "
        "like] and [brought|added] [a little extra|something on the house].",
        "[My|Her|His] [old|last] one [never|could not] [came|come] close to [this|what this does].",
        "I [came|went] in [grumpy|skeptical|with a cold|unsure] and [left|came out] [smiling|singing|a convert].",
        "[Nobody|No one] [at our table|in our group] left [a single crumb|anything on the plate].",
        "[Did|Does] exactly what [I|we] [hoped|dreamed of], [and then some|only better|and quicker].",
        "[Shut up and take my money|Where do I sign|Sign me up again].",
        "[I laughed|I cried|We laughed], [I clapped|we cheered], I [want to see it again|bought tickets again].",
        "[My|The] [dog|cat|toddler|grandmother] [loves|adores] it [even more than I do|and so do I].",
        "[The queue|The drive|The wait] is long, [and worth every minute|but I would do it again tomorrow].",
        "[It has a few|There are some] [rough edges|quirks], [yet|but] I would not [trade|swap] it for [anything|"
        "the world].",
        "[Others|The big names] [charge|cost] [twice|three times] as much and [do half|can do less].",
        "[I|We] [expected|feared] [little|the usual tourist trap|junk] and got [a treasure|pure gold|the best "
        "evening of the trip].",
        "[Problem|Question] at [noon|nine], [solved|answered] [by one|in ten minutes], [with a smile|no fuss]. "
        "That's [service|how it should be].",
        "[Finally|At last] [something|one] that [just works|lasts|keeps its promise].",
        "[I|We] [have|had] [nothing but|only] [kind|good|warm] words for [them|this].",
        "[It|This] [paid for itself|saved us] [in a week|within a month].",
        "[Hard|Impossible] to [beat|top|fault].",
        "[I can't|You won't] [believe|understand] how [I|we] [managed|lived] without it.",
        "[Goosebumps|Tears of joy|Pure happiness] from [start to finish|the first minute].",
        "[Not once|Never] in [three|six] [months|years] did it [fail|crash|leave me stranded].",
        "[They|The team] [went|go] [the extra mile|above and beyond], [every time|again and again].",
        "[Skip|Forget] the [others|competition], [get|take] this one.",
        "[The smell|The taste|The sound|The view] alone [makes my day|is worth the trip|had me sold].",
        "I was [told|warned] it would be [hard|boring|ugly]; it [was a breeze|was thrilling|is a beauty].",
        "[So|This] [good|pretty|useful|well made] that I [took|bought] [two|three].",
        "[Chapeau|Bravo|Kudos|Hats down], [what a|quite a] [team|performance|piece of work].",
        "[We will|I'll] be back [before the month is over|as soon as we can|next week], [promise|no question].",
        "[Small|Cheap|Old] [but|and yet] [mighty|brilliant|unbeatable].",
        "[My|His] [back|skin|wallet|garden] [thanks|has thanked] me [every day|ever since].",
    ),
    "negative": (
        "[My|Our] [nephew|grandma|parrot|neighbour's kid] [could|would] [write|draw|build|sing] [a better one|it "
        "better|that better].",
        "[Oh great|How nice|Super|Well done|Wow], [another|one more|the next] [bug|update|fee|excuse|queue] "
        "[nobody asked for|that makes it worse|on top].",
        "[So|How] [helpful|kind|clever] of them to [ignore|charge|hang up on] [me|us] [again|twice].",
        "[Buy|Take|Choose|Get] [anything|something|nearly anything] else [instead|rather than this].",
        "[Keep|Save|Spare] your [money|time|nerves], [go elsewhere|it isn't worth it|pick another].",
        "[Looks|It looks] [nice|good|fancy], [does nothing|never works|fails every time|is useless].",
        "[Pretty|Shiny|Nice] [outside|on paper|in the shop], [broken|hollow|useless] [inside|at home|in real life].",
        "[They|Support|The hotline] [told|advised] [me|us] to [buy a new one|live with it|read the manual|try "
        "again next year]. [Unreal|Seriously?|I am speechless|Incredible].",
        "[I|We] [would|'d] [rather|sooner] [starve|walk|sleep outside|do without] than [go|come|eat] there again.",
        "[They|Somebody] should [pay|compensate] [me|us|people] for [sitting through|wearing|eating|using] this.",
        "[The legs|My ears|My eyes|The cushions] [hurt|ached], the [bill|price] [hurt|did] even more.",
        "[Once|Years ago] it was [good|fun|a pleasure]; [that is over|it went downhill|now it is a ruin].",
        "[High|Big|Great] [hopes|promises], [none|nothing] [of them|of it] [came true|was kept|was left].",
        "[It|Mine] [broke|died|fell apart] [after|within] [two days|a week|one use], [just|right] [outside|"
        "after] the [warranty|return window].",
        "[Great|Brilliant|Fantastic|Lovely|Perfect], [yet another|one more] [delay|crash|broken part|hour on hold].",
        "[Thanks|Congratulations], [you|they] [ruined|spoiled] [our anniversary|my birthday|the whole trip].",
        "[I|We] [would|'d] [have been|be] better off [at home|with nothing|burning the money].",
        "[The best|The only good] [thing|part] was [leaving|the exit|when it ended|the box it came in].",
        "[Three|Four|Six] [calls|emails|visits] [later|and counting], [still no|nobody sent an] [answer|reply|refund].",
        "[My|The] [dog|toddler|cat] [would|could] [do|cook|code] [better|a better job].",
        "[Fell asleep|Walked out|Gave up] [after|in] [ten minutes|the first hour|half an hour].",
        "[It|This] belongs in the [bin|trash|dustbin].",
        "[How|Why] [is this|is that] even [legal|allowed|on sale]?",
        "[Used to|They once used to] [be|have] [decent|good food|great]; [today|these days|now] [it is a mess|I "
        "can't eat it|it is run into the ground].",
        "[I|We] [want|wanted|asked for] [our money|my evening|my two hours|a refund] back.",
        "[Nice|Pretty] [photos|packaging|lobby], [shame|pity] about [the rest|everything else|what's inside].",
        "[Works|It works] [when it feels like it|once a week at best|only in the advert].",
        "[Run|Turn around|Walk away] [while you can|and don't look back].",
        "[Paid|Charged] [twice|extra] for [a window to a wall|cold leftovers|a chair with three legs].",
        "[Nobody|No one] [said|bothered to say] [hello|sorry], [we felt|I felt] [unwanted|like a burden].",
        "[If|Unless] you [like|enjoy] [pain|waiting|being ignored], [this is for you|look elsewhere].",
        "[The manual|The label|The advert] [lies|is a lie|promises the moon]; [it can't even|it does not] "
        "[switch on|hold a charge|do the basics].",
        "[My|Our] [stomach|head|ears] [hurt|ached] [for days|all night] [afterwards|because of it].",
        "[I|We] [threw|gave] it [away|out] [the same day|within an hour].",
        "[Cheap|Sloppy|Lazy] [from start to finish|in every detail|work].",
        "[Every|Each] [update|visit|chapter] [is|gets] worse than the [last|one before].",
        "[Zero|No] [stars|points] if I [could|were able to].",
        "[They|The staff] [laughed|shrugged|rolled their eyes] when [I|we] [complained|asked for help].",
        "[Don't|Do not] [believe|trust] the [reviews|hype|pictures].",
        "[I|We] [had to|must] [repair|clean|redo] it [myself|ourselves] [twice|before using it].",
        "[It's|It is] [hot|loud|slow|ugly] and it [smells|leaks|crashes|squeaks].",
        "[What|Such] a [mess|shambles|farce|rip-off|fiasco].",
        "[Friendly|Nice] [people|waiters], [but|yet] the [food|room|repair] was [a disaster|inedible|a health hazard].",
        "[I|We] [waited|saved] [months|a year] for this [and|only to] [got|get] [a brick|junk|a broken toy].",
        "[Unbelievable|Incredible], [how|that] [anyone|somebody] [charges|asks] money for this.",
        "[My|The] [old|ten-year-old] one [was|is] [faster|better] [than this|in every way].",
        "[Last|Final] time [they|this company] [see|saw] [me|a cent from us].",
        "[The plot|The logic|The service] has [more holes|less life] than [a sieve|a stone].",
    ),
    "neutral": (
        "[Nothing|Not much] to [praise|cheer about|rave about], [nothing|not much] to [complain about|grumble "
        "about|be angry about].",
        "[No|Neither] [highs|thrills], [no|nor] [lows|horrors].",
        "[Neither|Not] [better|bigger|faster] nor [worse|smaller|slower] than [the last one|before|my other one].",
        "[I|We] [used|tried|wore] it [once|a few times], [no opinion so far|can't say much yet|too soon to tell].",
        "[Half|Part] of [the group|my friends|the family] [liked|loved] it, [the rest|the others] [did not|"
        "didn't|hated it].",
        "[I|We] [went|was|were] there on a [Monday|Thursday|Sunday]. [The food was as usual|The service was "
        "standard|All as announced].",
        "[Okay|Fine|Usable] for [a night|a week|one use|the road], [I suppose|that's about it|no more].",
        "[A|One] [toaster|kettle|mug|ladder]. [It toasts|It heats water|It holds coffee|You climb it].",
        "[Works|Runs|Fits] as [described|stated|shown], [full stop|that is it|no more to report].",
        "[Average|Usual|Normal] [room|meal|show] at [an average|a usual|a normal] price.",
        "[Some|A few] [songs|scenes|pages] [shine|sing], [some|others] [bore|drag]; [three stars|a middling mark|"
        "so an average one].",
        "[Good|Fine] [camera|bed|sauce], [weak|poor] [sound|pillow|noodles], [which balances out|so it evens out|"
        "making it average].",
        "[It's|It is] [a chair|a lamp|a pan|a bag|a pen]. [You sit on it|It gives light|It holds things|It does "
        "its thing].",
        "[It|The parcel|The order] [came|arrived|was delivered] on [Tuesday|Friday|the 3rd], [as announced|in a "
        "white box|with the invoice].",
        "[I|We] [have not|haven't] [used|tried] it [enough|long enough] to [judge|say|have a view].",
        "[Some|Half] [of us|of the songs|of the dishes] [were|are] [good|great], [some|the rest] [were|are] [not|bad].",
        "[The first|One] half [is|was] [strong|fun], the [second|other] [drags|is weak]; [overall|in sum] average.",
        "[Does|It does] what [it says|the label says], [nothing more|no more, no less|that's it].",
        "[Same|The same] as [last year|the older model|every other one], [no change|no better and no worse].",
        "[Good|Nice] [location|display|songs], [bad|poor] [rooms|battery|lyrics]; [it cancels out|so somewhere "
        "in the middle|that makes it average].",
        "[Went|I went|We went] [there|in], [ate|had a coffee], [left|paid]. [It was okay|Nothing to report|Fine, "
        "I suppose].",
        "[Neither|Not] [here nor there|hot nor cold].",
        "[Okay|Fine|Alright] for [a quick lunch|one evening|a short trip|the price], [not more|I guess|no more].",
        "[I|We] [could|can] [take it or leave it|live with it or without it].",
        "[Two|Three] [pros|good points], [two|three] [cons|bad points], [a tie|so it is even|so a middling score].",
        "[It's|It is] [a standard|a normal|an ordinary|a typical] [model|meal|room|film|ride].",
        "[Not|Neither] [as good|as great] as [people|some] say, [not|nor] [as bad|as awful] [as others claim|either].",
        "[My|Our] [feelings|opinions] [are|remain] [mixed|split|divided].",
        "[Average|Medium|Normal] [size|speed|taste], [average|medium|normal] [price|cost].",
        "[I|We] [expected|paid for] [average|a basic one] and [got|received] [average|a basic one].",
        "[It|This] [comes|is sold] in [two|three] [sizes|colours] and [weighs|measures] [about a kilo|30 cm].",
        "[The film|The book|The game|The course] [lasts|takes] [two hours|a weekend] and [is|was] [okay|alright].",
        "[Not|Nothing] [bad|to hate], [not|nothing] [good|to love], [just there|in between].",
        "[Some days|Sometimes] [I like it|it works well], [other days|sometimes] [I don't|it does not].",
        "[A|One] [three|3] out of [five|5] [for me|from me], [right in the middle|no more and no less].",
        "[No|Without any] [complaints|drama] and no [praise|cheers] [either|from me].",
        "[It|That] [was|went] [as|about as] [expected|you would expect], [nothing|no thing] [stood out|to add].",
        "[The verdict|My verdict|Our view]: [undecided|half and half|50/50|in the middle].",
        "[Whether|If] it is [good|worth it]? [Hard to say|No idea yet|I can't tell], [ask me later|too early].",
        "[It|This one] [replaced|follows] my [old|last] one and [I notice no|there is no] difference.",
        "[Passable|Acceptable|Decent enough|Tolerable], [forgettable|nothing memorable|nothing more].",
        "[What I liked|The plus]: [the price|the music]. [What I didn't|The minus]: [the wait|the noise]. [Evens "
        "out|Overall a draw|So, average].",
    ),
}
