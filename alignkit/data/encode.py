from dataclasses import dataclass
@dataclass(frozen=True)
class EncodedGroup:
    prompt_ids: list
    responses: list
    prompt_trained: list | None
    index: int
def encode_groups(groups, chat, *, max_prompt_tokens, max_response_tokens, train="last", reuse_ids=True):
    out = []
    for i, row in enumerate(groups):
        ids = row["response_ids"] if row["tokenizer"] == chat.fingerprint and row["response_ids"] else [chat.encode_response(r) for r in row["responses"]]
        out.append(EncodedGroup(chat.encode_prompt(row["prompt"]), ids, None, i))
    return out, []
