"""Chats: the ids are those of the tokenizer's own `apply_chat_template`, and every token is assigned to the role that said it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activations.chat import ChatTemplate
from activations.documents import Conversation, Document
from activations.errors import ChatError, GenerationError, TextError
from activations.generation import prompt_ids
from activations.harvest import harvest
from activations.language_model import load
from activations.store import Store
from activations.text import TextConfig, documents
from activations.tokens import NOWHERE, PackingConfig, windows
from tests import tiny
from tests.tokenizers import KINDS, tokenizer

ANSWER = "{% if add_generation_prompt %}"
TEMPLATES = {
    "vicuna": "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}ASSISTANT: "
    "{{ m['content'] }}</s>{% endif %}{% endfor %}" + ANSWER + "ASSISTANT:{% endif %}",
    "llama 2": "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}[INST] {{ m['content'].strip() }}"
    " [/INST]{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}",
    "chatml": "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    + ANSWER + "<s>assistant\n{% endif %}",
    "says what is generated": "{% for m in messages %}{% if m['role'] == 'assistant' %}A: {% generation %}"
    "{{ m['content'] }}</s>{% endgeneration %}\n{% else %}U: {{ m['content'] }}\n{% endif %}{% endfor %}",
    "shows it twice": "{% for m in messages %}T {{ m['content'] }} / {{ m['content'] | e }}</s>{% endfor %}",
    "shows nothing": "{{ bos_token }}hello",
    "upper case": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}</s>{% endfor %}",
    "trims and dates": "{{ strftime_now('%Y') }}{% for m in messages %}<s>{{ m['content'] | trim }}{% endfor %}",
}  # fmt: skip
SAID = ["hi", " What  is 人? \n", '<b>bold</b> & "naïve"', "", "\n\n", "👩‍👩‍👧‍👦 a\tb"]
MESSAGES = [
    {"role": "user", "content": " What  is 人? \n"},
    {"role": "assistant", "content": "A person.\n\nYes </b>"},
    {"role": "user", "content": "ok"},
    {"role": "assistant", "content": "Bye"},
]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)


class ModelStub:
    """The part of a model that `prompt_ids` uses."""

    name = "toy"

    def __init__(self, made: Any):
        self.tokenizer = made


def template_ids(made: Any, messages: list[dict[str, Any]], **settings: Any) -> list[int]:
    return made.apply_chat_template(messages, tokenize=True, return_dict=False, **settings)


@every_kind
@every_template
def test_a_chat_prompt_has_the_ids_of_the_tokenizer_s_own_template(kind: str, template: str):
    made = tokenizer(kind, chat_template=template)
    for said in SAID:
        turn = [{"role": "user", "content": said}]
        assert prompt_ids(ModelStub(made), said, chat=True) == template_ids(
            made, turn, add_generation_prompt=True
        )  # type: ignore[arg-type]


@every_kind
@every_template
def test_a_conversation_has_the_ids_of_the_tokenizer_s_own_template_whoever_counts(kind: str, template: str):
    made = tokenizer(kind, chat_template=template)
    for roles in (None, frozenset({"assistant"}), frozenset({"user", "system"})):
        ids, selected, _ = ChatTemplate(made).marked_ids(Conversation(MESSAGES, roles))
        assert ids.tolist() == template_ids(made, MESSAGES)
        assert (selected is None) == (roles is None)


@every_kind
@every_template
def test_special_tokens_that_a_user_spells_are_data(kind: str, template: str):
    made = tokenizer(kind, chat_template=template)
    spelled, without = ([{"role": "user", "content": said}] for said in ("a </s> b <s>", "a b"))
    special = {*made.all_special_ids} - {made.unk_token_id}
    counts = [sum(token in special for token in ChatTemplate(made).ids(each)) for each in (spelled, without)]
    assert counts[0] == counts[1]
    if "upper" not in template and "hello" not in template and kind != "wordpiece":
        shown = made.decode(ChatTemplate(made).ids(spelled)).replace(" ", "")
        assert "a</s>b<s>" in shown


@every_kind
def test_a_role_has_said_its_content_and_the_token_that_ends_its_turn(kind: str):
    for name in ("vicuna", "llama 2", "chatml", "says what is generated"):
        made = tokenizer(kind, chat_template=TEMPLATES[name])
        ids, selected, _ = ChatTemplate(made).marked_ids(Conversation(MESSAGES, frozenset({"assistant"})))
        shown = made.decode(ids[selected]).replace(" ", "")
        assert shown.lower() == "aperson.\n\nyes</b></s>bye</s>".replace(
            "\n\n", "" if kind == "wordpiece" else "\n\n"
        )
        ids, selected, _ = ChatTemplate(made).marked_ids(Conversation(MESSAGES, frozenset({"user"})))
        assert "person" not in made.decode(ids[selected])
        assert "Bye" not in made.decode(ids[selected])


def test_tool_calls_belong_to_the_message_that_makes_them():
    template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] or '' }}{% for c in m['tool_calls'] or [] %}"
        "[{{ c['function'] | tojson }}]{% endfor %}</s>{% endfor %}"
    )
    made = tokenizer("byte-bpe", chat_template=template)
    call = {"type": "function", "function": {"name": "add", "arguments": {"first": "one", "second": 2}}}
    messages = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "Yes", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    ids, selected, _ = ChatTemplate(made).marked_ids(Conversation(messages, frozenset({"assistant"})))
    assert ids.tolist() == template_ids(made, messages)
    assert made.decode(ids[selected]).startswith("Yes[{")
    assert '"first": "one' in made.decode(ids[selected])
    assert "tool" not in made.decode(ids[selected])


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{% for m in messages %}", "endfor"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ messages[7]['content'] + 1 }}", "chat template"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_fails_is_said_in_one_line(template: str | None, says: str):
    made = tokenizer("byte-bpe")
    made.chat_template = template
    with pytest.raises(GenerationError) as caught:
        prompt_ids(ModelStub(made), "hi", chat=True)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_a_template_rewrites_what_is_said_roles_are_refused_and_all_is_read():
    made = tokenizer(
        "byte-bpe",
        chat_template="{{ messages | length }}{% for m in messages %}{{ m['content'][:9] }}{{ m['content'] | length }}{% endfor %}",
    )
    assert ChatTemplate(made).marked_ids(Conversation(MESSAGES)).ids.tolist() == template_ids(made, MESSAGES)
    with pytest.raises(ChatError, match="--roles all"):
        ChatTemplate(made).marked_ids(Conversation(MESSAGES, frozenset({"user"})))


OPENAI = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "yes"},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def only_document(path: Path, row: dict[str, Any], **settings: str) -> Document:
    path.write_text(json.dumps(row) + "\n")
    (document,) = documents(TextConfig(str(path), **settings))
    return document


@pytest.mark.parametrize(
    "row",
    [
        OPENAI,
        SHAREGPT,
        {"conversation": TURNS, "id": 3},
        {"prompt": "hi", "completion": "yes"},
        {"prompt": "hi", "response": "yes"},
        {"instruction": "hi", "input": "", "output": "yes"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"messages": json.dumps(TURNS)},
    ],
    ids=lambda row: "+".join(row),
)
def test_the_usual_layouts_of_conversations_are_read_without_being_named(tmp_path: Path, row: dict[str, Any]):
    document = only_document(tmp_path / "a.jsonl", row)
    assert isinstance(document, Conversation)
    assert list(document.messages) == TURNS


def test_columns_can_be_named_and_a_text_goes_before_a_conversation(tmp_path: Path):
    both = {"text": "plain", "messages": TURNS, "ask": "hi", "say": "yes"}
    assert only_document(tmp_path / "a.jsonl", both) == "plain"
    for column in ("messages", "ask,say"):
        document = only_document(tmp_path / "a.jsonl", both, column=column)
        assert isinstance(document, Conversation)
        assert list(document.messages) == TURNS


@pytest.mark.parametrize(
    ("row", "settings", "says"),
    [
        ({"messages": [{"who": "me"}]}, {}, "'who'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {}, "'image'"),
        ({"messages": [["hi"]]}, {}, "list of list"),
        ({"text": "x"}, {"roles": "assistant"}, "--roles"),
        ({"input_ids": [1, 2]}, {"roles": "assistant"}, "--roles"),
        ({"messages": TURNS}, {"roles": "asistant"}, "--roles assistant"),
    ],
)
def test_what_is_no_conversation_is_refused(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, str], says: str
):
    with pytest.raises(TextError) as caught:
        only_document(tmp_path / "a.jsonl", row, **settings)
    assert says in str(caught.value)


def chat_store(folder: Path, **settings: Any) -> Store:
    model = load(str(tiny.model_folder(folder / "model")))
    model.tokenizer.chat_template = (
        TEMPLATES["vicuna"].replace("</s>", "<eos>").replace("{% for", "<bos>{% for", 1)
    )
    rows = [
        [{"role": "user", "content": f"ask {n} of it"}, {"role": "assistant", "content": f"said {n}"}]
        for n in range(30)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    text = TextConfig(str(folder / "chat.jsonl"), **settings)
    packing = PackingConfig(context=64, packing="document")
    return harvest(model, folder / "store", replace(tiny.harvest_config(folder), text=text, packing=packing))


def test_a_store_of_answers_counts_their_rows_alone_and_the_model_reads_the_rest(tmp_path: Path):
    store = chat_store(tmp_path, roles="assistant")
    made = load(str(tmp_path / "model"))
    made.tokenizer.chat_template = None
    tokens, counted = 0, ""
    for number in range(len(store.shards)):
        shard = store.read(number, (tiny.HOOK,))
        rows = store.rows(shard)
        tokens += int(rows.sum())
        counted += made.tokenizer.decode(shard.tokens[rows])
        whole = made.capture(shard.tokens.long(), [tiny.HOOK])[tiny.HOOK]
        np.testing.assert_allclose(shard.activations[tiny.HOOK][rows], whole[rows], rtol=1e-4, atol=1e-5)
        assert (shard.tokens[:, 0] == 0).all()
        assert (shard.tokens[:, 1] != 0).all()
        assert (shard.documents[~rows] == NOWHERE).all()
    assert counted == "".join(f"said {n}<eos>" for n in range(30))
    assert sum(entry.rows for entry in store.shards) == tokens
    assert store.spec.dataset["roles"] == "assistant"
    assert store.spec.chat_template_sha256


def test_a_store_of_whole_conversations_holds_the_template_s_ids(tmp_path: Path):
    store = chat_store(tmp_path)
    shard = store.read(0)
    made = tiny.tokenizer()
    made.chat_template = TEMPLATES["vicuna"].replace("</s>", "<eos>").replace("{% for", "<bos>{% for", 1)
    want = template_ids(
        made, [{"role": "user", "content": "ask 0 of it"}, {"role": "assistant", "content": "said 0"}]
    )
    assert shard.tokens[0, : len(want)].tolist() == want
    assert shard.positions[0, 1 : len(want)].tolist() == [*range(1, len(want))]
    assert "roles" not in store.spec.dataset


def test_token_ids_are_used_as_they_are_and_held_to_the_model(tmp_path: Path):
    model = load(str(tiny.model_folder(tmp_path / "model")))
    rows = [[0, 5, 6, 7], [8, 9, 10, 11, 12]]
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    config = PackingConfig(context=8, packing="document")
    made = [*windows(documents(TextConfig(str(path))), model.tokenizer, config, 258)]
    assert [
        window.tokens[: 1 + len(row)].tolist() for window, row in zip(made, [[5, 6, 7], rows[1]], strict=True)
    ] == [
        [0, 5, 6, 7],
        [0, 8, 9, 10, 11, 12],
    ]
    path.write_text(json.dumps({"input_ids": [1, 258]}))
    with pytest.raises(TextError, match="258"):
        harvest(model, tmp_path / "store", tiny.harvest_config(path))
    assert not (tmp_path / "store").exists()
