"""The words of TinyTLDR: four kinds of fact, and the sentences that carry them.

Nothing here is random; `posts` and `summaries` draw from these lists. The order of the lists fixes the token ids of
the shipped models, so append rather than reorder, and rebuild the shipped models afterwards.
"""

SLOTS: dict[str, tuple[str, ...]] = {
    "who": (
        "roommate", "brother", "sister", "boss", "neighbor", "cousin", "uncle", "landlord",
        "girlfriend", "boyfriend", "coworker", "mother", "father", "teacher", "aunt", "ex",
    ),
    "did": (
        "broke", "sold", "borrowed", "hid", "lost", "stole", "painted", "burned",
        "moved", "copied", "mailed", "returned", "dropped", "scratched", "kept", "cleaned",
    ),
    "what": (
        "laptop", "bike", "guitar", "camera", "couch", "phone", "jacket", "lamp",
        "kettle", "tent", "car", "watch", "violin", "desk", "mirror", "blender",
    ),
    "ask": (
        "leave", "apologize", "sue", "wait", "complain", "forgive", "pay", "confess",
        "move", "quit", "insist", "negotiate", "laugh", "lie", "call", "vanish",
    ),
}  # fmt: skip

SUBREDDITS = ("relationships", "advice", "tifu", "legaladvice", "college", "pettyrevenge")

# What is told. The words before the clause say whether it is what happened (MAIN) or beside the point (ASIDE).
CLAUSE = "my {who} {did} my {what}"
MAIN_OPENERS = ("today", "this week", "yesterday", "last night", "so now", "this morning")
ASIDE_OPENERS = ("years ago", "once", "in a dream", "as a kid i heard", "long before that", "in another story")

ASKS = ("should i {ask} ?", "do i {ask} ?", "is it right to {ask} ?", "would you {ask} ?")
ASIDE_ASKS = (
    "people told me to {ask} .",
    "my therapist would never {ask} .",
    "some would {ask} .",
    "nobody has to {ask} .",
)
FILLERS = (
    "i am so tired .",
    "we live close .",
    "it was raining .",
    "sorry for the long post .",
    "i can not sleep .",
    "throwaway account here .",
    "this is about me .",
    "i did nothing wrong .",
    "english is hard .",
    "please be kind .",
    "i feel bad .",
    "what a mess .",
)

TITLE_FULL = CLAUSE
TITLE_VAGUE = ("need advice about my {who}", "am i wrong about my {what}", "my {who} again")

# How a summary is worded, and what it says instead of a fact that it leaves out.
SUMMARY = ("my {who} {did} my {what} , should i {ask} ?", "{who} {did} my {what} , do i {ask} ?")
VAGUE = {"who": "relative", "did": "took", "what": "stuff", "ask": "worry"}

# What readers say below a summary (pre-training only): an overall reaction, then a verdict on each kind of fact.
REACTIONS = ("awful", "bad", "meh", "okay", "good", "great")
VERDICTS = ("right", "wrong", "missing")
