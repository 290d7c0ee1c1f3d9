"""The model `vidsieve` of lmms-eval on stand-ins: its answers are those of `vidsieve eval`, and what it refuses."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integrations import lmms_eval_stand_in as stand_in
from integrations.lmms_eval_stand_in import Instance, LocalTask, Told
from PIL import Image

from vidsieve import load_policy
from vidsieve.framework.registry import default
from vidsieve.harness.session import Session, open_session
from vidsieve.harness.setup import Setup
from vidsieve.integrations.lmms_eval import manifest
from vidsieve.integrations.lmms_eval.generation_settings import GenerationSettings

FRAMES, VISUAL_TOKENS, RATIO = 8, 144, 0.5


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    with stand_in.stand_in() as found:
        yield found


@pytest.fixture(scope="module")
def task(dataset: Path) -> LocalTask:
    return LocalTask(dataset)


@pytest.fixture(scope="module")
def arguments(models: Path) -> str:
    return f"pretrained={models / 'qwen2-vl-tiny'},max_num_frames={FRAMES}"


@pytest.fixture(scope="module")
def session(models: Path, dataset: Path) -> Session:
    """What `vidsieve eval` measures with."""
    setup = Setup(
        model=str(models / "qwen2-vl-tiny"), data=str(dataset), frames=FRAMES, max_new_tokens=2, feature_store="off"
    )
    return open_session(setup, default())


def opened(task: LocalTask, form: str, arguments: str, **options: Any) -> Any:
    """The model as lmms-eval makes it."""
    made = getattr(importlib.import_module(stand_in.MODULE), form)
    return task.serve(made.create_from_arg_string(arguments, {"batch_size": 1, "device": None} | options))


@pytest.fixture(scope="module")
def simple(told: Told, task: LocalTask, arguments: str) -> Any:
    return opened(task, "VidsieveSimple", f"{arguments},policy=vidcom2,retention={RATIO},batch_size=3")


@pytest.fixture(scope="module")
def chat(told: Told, task: LocalTask, arguments: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    report = tmp_path_factory.mktemp("report") / "report.json"
    made = opened(task, "VidsieveChat", f"{arguments},policy=vidcom2,retention={RATIO},report={report}")
    made.report = report
    return made


@pytest.fixture(scope="module")
def answers(session: Session) -> list[str]:
    """The answers of `vidsieve eval`, written."""
    policy = load_policy("vidcom2", retention_ratio=RATIO)
    return [session.bench.answer(policy, example)[0] for example in session.task.all]  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["simple", "chat"])
def test_written_answers_are_those_of_eval(
    form: str, task: LocalTask, answers: list[str], told: Told, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(form)
    found = model.generate_until(task.written(chat=form == "chat"))
    assert [one.text for one in found] == answers
    counts = found[0].token_counts
    text = model.prompt_of(task.written(chat=form == "chat")[0]).text
    words = len(model.tokenizer(text)["input_ids"]) - 1  # the video's place
    assert counts.input_tokens == words + VISUAL_TOKENS * RATIO and 1 <= counts.output_tokens <= 2
    metrics = told.metrics[-1]["additional_metrics"]
    assert metrics["attained_retention"] == pytest.approx(RATIO)
    assert metrics["ttft_ms"] > 0 and metrics["num_requests"] == len(task.docs)
    digest = load_policy("vidcom2", retention_ratio=RATIO).hash
    assert metrics[f"policy_{digest}"] == 1
    assert any(digest in line and "retention 0.5000 of 0.5 asked" in line for line in told.lines)


def test_the_report_holds_every_request(chat: Any, task: LocalTask) -> None:
    chat.generate_until(task.written(chat=True)[:2])
    written = json.loads(chat.report.read_text())
    assert written["policy"] == "vidcom2" and written["requested_retention"] == RATIO
    assert written["measured_on"]["frames"] == str(FRAMES)
    last = written["requests"][-1]
    assert (last["task"], last["doc_id"], last["retention_ratio"]) == ("clips", 1, RATIO)


def test_scored_options_choose_as_eval_does(simple: Any, task: LocalTask, session: Session) -> None:
    found = iter(simple.loglikelihood(task.scored()))
    chosen = []
    for doc in task.docs:
        losses = [next(found).text[0] for _ in doc["options"]]
        chosen.append(doc["options"][losses.index(min(losses))])
    policy = load_policy("vidcom2", retention_ratio=RATIO)
    scored = session.bench.score(policy, session.task.all)  # type: ignore[attr-defined]
    assert chosen == [one.prediction for one in scored]


def test_what_is_written_greedily_is_the_continuation_that_is_called_greedy(simple: Any, task: LocalTask) -> None:
    [request] = task.written(chat=False, max_new_tokens=1)[:1]
    [answer] = simple.generate_until([request])
    words = [answer.text, next(one for one in ("red", "blue") if one != answer.text)]
    asked = [Instance(request.args[0], lambda doc, word=word: word, task.visuals, 0, "clips", "test") for word in words]
    (first, is_greedy), (second, other) = (one.text for one in simple.loglikelihood(asked))
    assert is_greedy and not other and first < second


def test_without_a_policy_the_model_is_as_it_is(told: Told, task: LocalTask, arguments: str, session: Session) -> None:
    model = opened(task, "VidsieveSimple", arguments)
    found = model.generate_until(task.written(chat=False)[:3])
    plain = [session.bench.answer(None, example)[0] for example in session.task.all[:3]]  # type: ignore[attr-defined]
    assert [one.text for one in found] == plain
    assert told.metrics[-1]["additional_metrics"]["attained_retention"] == 1
    assert any("under no policy" in line for line in told.lines)
    model.clean()
    assert "_model" not in vars(model) and model.device.type == "cpu"


def test_requests_that_only_keep_processes_in_step_are_not_counted(simple: Any, task: LocalTask, told: Told) -> None:
    real, padding = task.written(chat=False)[:2]
    padding.metadata = {"__padding_only__": True}
    assert len(simple.generate_until([real, padding])) == 2
    assert told.metrics[-1]["additional_metrics"]["num_requests"] == 1


def test_prompts_without_a_video_and_with_two_are_answered(simple: Any, task: LocalTask, told: Told) -> None:
    doc = task.docs[0]["video"]
    visuals = {0: None, 1: [doc, [doc]], 2: [doc]}
    settings = {"max_new_tokens": 1, "temperature": 0}
    requests = [
        Instance("what color ?", settings, lambda _, number=number: visuals[number], number, "clips", "test")
        for number in visuals
    ]
    none, two, one = (found.token_counts.input_tokens for found in simple.generate_until(requests))
    assert two - one == one - none > 0
    assert told.metrics[-1]["additional_metrics"]["attained_retention"] == pytest.approx(RATIO)


def test_an_answer_ends_at_a_stop_text_and_unknown_settings_are_named_once(
    simple: Any, task: LocalTask, answers: list[str], told: Told
) -> None:
    requests = task.written(chat=False, until=[answers[0][1:]], image_aspect_ratio="pad")[:1]
    for _ in range(2):
        [found] = simple.generate_until(requests)
    assert found.text == answers[0][:1]
    assert sum("image_aspect_ratio: not known" in line for line in told.lines) == 1


def test_sampled_is_only_where_a_temperature_is_asked_for() -> None:
    greedy = GenerationSettings.of({"do_sample": True, "temperature": 0, "top_p": 0.9, "max_new_tokens": 3})
    assert greedy.options == {} and greedy.max_new_tokens == 3
    sampled = GenerationSettings.of({"temperature": 0.7, "top_p": 0.9, "num_beams": 2, "until": "."})
    assert sampled.options == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_beams": 2}
    assert (sampled.max_new_tokens, sampled.cut("yes. no")) == (128, "yes")


@pytest.mark.parametrize("form", ["simple", "chat"])
def test_rounds_are_asked_with_the_answers_so_far(
    form: str, task: LocalTask, answers: list[str], request: pytest.FixtureRequest
) -> None:
    model, seen = request.getfixturevalue(form), []

    def following(doc: dict[str, Any], **state: Any) -> tuple[Any, ...]:
        """Three rounds about the same video; the task writes down what it was given."""
        seen.append((state["round_idx"], list(state["previous_output"]), state["previous_round_info"]))
        content = (task.messages(doc),) if form == "chat" else (task.visuals(doc), doc["question"])
        return (*content, state["round_idx"] == 3, state["previous_output"], f"info {state['round_idx']}")

    def messages(doc: dict[str, Any], **state: Any) -> Any:
        return following(doc, **state) if state else task.messages(doc)

    settings, place = {"max_new_tokens": 2}, (0, "clips", "test")
    args = ("", messages, settings) if form == "chat" else (task.docs[0]["question"], settings, task.visuals, following)
    [found] = model.generate_until_multi_round([Instance(*args, *place)])
    assert found == [answers[0]] * 3
    assert seen == [(1, found[:1], None), (2, found[:2], "info 1"), (3, found, "info 2")]


def test_a_task_of_one_round_is_refused_where_several_are_asked(simple: Any, task: LocalTask) -> None:
    asked = Instance("what ?", {"max_new_tokens": 1}, task.visuals, lambda doc, **state: "what ?", 0, "clips", "test")
    with pytest.raises(SystemExit, match="vidsieve: task clips: is no task of several rounds"):
        simple.generate_until_multi_round([asked])


def ask(visuals: list[Any]) -> Instance:
    return Instance("what ?", {"max_new_tokens": 1}, lambda doc: visuals, 0, "clips", "test")


def test_pictures_are_a_video_only_where_their_rate_is_given(
    told: Told, simple: Any, task: LocalTask, arguments: str
) -> None:
    pictures = [Image.new("RGB", (32, 32), (number * 20, 0, 0)) for number in range(10)]
    with pytest.raises(SystemExit, match=r"vidsieve: a question brings pictures.*picture_fps=RATE"):
        simple.generate_until([ask(pictures)])
    model = opened(task, "VidsieveSimple", f"{arguments},picture_fps=3")
    [found] = model.generate_until([ask(pictures)])
    assert found.token_counts.input_tokens > 1
    with pytest.raises(SystemExit, match="pictures of several sizes"):
        model.generate_until([ask([*pictures, Image.new("RGB", (8, 8))])])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "audio", "url": "a.wav"}, "brings audio"),
        ({"type": "video", "url": "a.mp4", "start_time": 3.0}, "about a part of it"),
        ({"type": "video", "url": object()}, "only video files are read"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(chat: Any, part: dict[str, Any], words: str) -> None:
    message = [{"role": "user", "content": [part]}]
    with pytest.raises(SystemExit, match=f"vidsieve: .*{words}"):
        chat.generate_until([Instance("", lambda doc: message, {}, 0, "clips", "test")])


def test_missing_and_unreadable_videos_are_named(simple: Any, task: LocalTask, tmp_path: Path) -> None:
    gone = tmp_path / "gone.mp4"
    with pytest.raises(SystemExit, match=rf"vidsieve: 1 of 2 videos are missing \(the first: {gone}\)"):
        simple.generate_until([ask([task.docs[0]["video"]]), ask([str(gone)])])
    gone.write_bytes(b"no video")
    with pytest.raises(SystemExit, match=f"vidsieve: {gone}: not a readable video"):
        simple.generate_until([ask([str(gone)])])


def test_options_are_refused_that_would_do_nothing_or_harm(simple: Any, chat: Any, task: LocalTask) -> None:
    with pytest.raises(SystemExit, match="--force_simple"):
        chat.loglikelihood(task.scored())
    with pytest.raises(SystemExit, match="vidsieve: --apply_chat_template"):
        _ = simple.chat_template
    with pytest.raises(SystemExit, match="acc_mutual_info"):
        simple.loglikelihood([Instance("", "x")])
    task.args.use_cache = "cache"
    try:
        with pytest.raises(SystemExit, match="--use_cache"):
            simple.loglikelihood(task.scored())
    finally:
        task.args.use_cache = None


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ("policy=vidcom2", {}, "pretrained: is missing"),
        ("pretrained=qwen2-vl-tiny,retension=0.25", {}, "no argument named 'retension'. Did you mean 'retention'"),
        ("pretrained=qwen2-vl-tiny,retention=0.25", {}, "belongs to a policy"),
        ("pretrained=qwen2-vl-tiny,policy=vidcom3", {}, "Did you mean 'vidcom2'"),
        ("pretrained=qwen2-vl-tiny,policy=vidcom2,retention=1.5", {}, "retention"),
        ("pretrained=qwen2-vl-tiny,max_num_frames=many", {}, "max_num_frames: must be a whole number, got 'many'"),
        ("pretrained=qwen2-vl-tiny,max_num_frames=0", {}, "max_num_frames: must be above 0"),
        ("pretrained=qwen2-vl-tiny,max_num_frames=8,fps=1", {}, "max_num_frames and fps: exclude each other"),
        ("pretrained=qwen3-v", {}, "no model named 'qwen3-v'"),
        ("pretrained=qwen2-vl-tiny", {"batch_size": "auto"}, "--batch_size: must be a number"),
        ("pretrained=qwen2-vl-tiny", {"device": "tpu"}, "tpu"),
        ("pretrained=qwen2-vl-tiny,report=nowhere/report.json", {}, "report: the folder nowhere"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(
    told: Told, task: LocalTask, bundled: None, arguments: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SystemExit, match=r"^vidsieve: ") as refused:
        opened(task, "VidsieveSimple", arguments, **options)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_manifest_names_both_forms(told: Told) -> None:
    found = manifest.manifest()
    assert found.model_id == "vidsieve"
    for path, is_simple in ((found.simple_class_path, True), (found.chat_class_path, False)):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).is_simple is is_simple


def test_another_lmms_eval_is_refused_in_a_sentence(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["lmms_eval.api.instance"], "TokenCounts")
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", None)
    monkeypatch.delitem(sys.modules, stand_in.MODULE, raising=False)
    with pytest.raises(
        SystemExit, match=r"^vidsieve: lmms-eval .* has no .*pip install 'vidsieve\[lmms-eval\]'"
    ) as refused:
        importlib.import_module(stand_in.MODULE)
    assert "lmms_eval.api.instance.TokenCounts" in str(refused.value)
    with pytest.raises(RuntimeError, match=r"^vidsieve: the model 'vidsieve' is missing"):
        manifest.manifest()
