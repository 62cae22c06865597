"""The first sentences: what an operator should know of a server before anything else, and do, in plain words."""

from taxbreak_vllm.model.advice import AdviceReport
from taxbreak_vllm.model.breakdown import StepBreakdown
from taxbreak_vllm.model.engine import Between, EnginePart
from taxbreak_vllm.model.frontend import DELIVERY, Stage
from taxbreak_vllm.model.server import Concern, DevicePart, Headline, StepPart
from taxbreak_vllm.output.words import duration, one, percent

STAGE_WORDS = {
    Stage.RECEIVE: "the body's arrival (receive)",
    Stage.PARSE: "the parsing (parse)",
    Stage.RENDER: "the tokenizer (render)",
    Stage.SUBMIT: "the checking and sending (submit)",
    Stage.IPC_INPUT: "the message to the engine (ipc_input)",
    Stage.IPC_OUTPUT: "the message from the engine (ipc_output)",
    Stage.DETOKENIZE: "the detokenizer (detokenize)",
    Stage.SERIALIZE: "the making of JSON (serialize)",
    Stage.SEND: "the sending (send)",
}
QUEUE_WORDS: dict[Stage | DevicePart | None, str] = {
    Stage.QUEUE: "for a place in a step (queue): the engine has as many as it takes",
    Stage.QUEUE_KV: "for KV blocks (queue_kv): the KV cache is full",
    Stage.QUEUE_ENCODER: "for the encoder (queue_encoder): it has as many inputs as it takes",
    Stage.QUEUE_GRAMMAR: "for their grammar (queue_grammar): it is compiled first",
    Stage.QUEUE_REMOTE_KV: "for their KV cache (queue_remote_kv): it comes from another server",
}
PART_WORDS: dict[DevicePart, str] = {
    EnginePart.INPUT: "taking requests in (input)",
    EnginePart.SCHEDULE: "the scheduler (schedule)",
    EnginePart.GRAMMAR: "structured output (grammar)",
    EnginePart.DISPATCH: "sending the step (dispatch)",
    EnginePart.UPDATE: "taking tokens in (update)",
    EnginePart.POST: "sending outputs (post)",
    EnginePart.LOOP: "what no part of it explains (loop)",
    Between.IPC_DISPATCH: "the message to the worker (ipc_dispatch)",
    Between.IPC_RETURN: "the message from the worker (ipc_return)",
    Between.FRONTEND: "the API server (frontend)",
    Between.IPC_INPUT: "the message to the engine (ipc_input)",
    StepPart.DELTA_FT: "Python and the dispatch of ops (ΔFT)",
    StepPart.DELTA_CT: "vendor libraries (ΔCT)",
    StepPart.DELTA_KT: "launch calls (ΔKT)",
    StepPart.CALLS: "other runtime calls",
}


def step_sentence(step: StepBreakdown) -> str | None:
    """Say in one sentence what the device of a step waits for; None where that is not known."""
    waited_ns, exposed = step.device.idle.host_ns, step.exposed
    whole_ns = step.device.window_ns if step.iteration is None else step.iteration.window_ns
    if waited_ns is None or not whole_ns or step.device.idle_ns is None:
        return None
    parts = {
        StepPart.DELTA_FT: exposed.delta_ft_ns or 0,
        StepPart.DELTA_CT: exposed.delta_ct_ns or 0,
        StepPart.DELTA_KT: exposed.delta_kt_ns or 0,
        StepPart.CALLS: exposed.other_ns or 0,
    }
    part = max(parts, key=lambda each: parts[each])
    most = f", most of that for {PART_WORDS[part]}" if parts[part] else ""
    return (
        f"The device waits {percent(waited_ns / whole_ns)} of the time for the host{most};"
        f" it is idle {percent(step.device.idle_ns / whole_ns)} in all."
    )


def remedy_sentence(report: AdviceReport) -> str:
    """Say what to change first, what it saves and can save at most, or nothing where nothing is advised."""
    if not report.advice:
        return ""
    first = report.advice[0]
    what = first.settings[0] if first.settings else first.change
    phases = [
        f"{each.phase} ({percent(each.serving_ratio)} of the serving time)"
        for each in first.phases
        if each.phase is not None and each.serving_ratio is not None
    ]
    where = f", in {' and '.join(phases)}" if phases else ""
    about = "" if first.predicted is None else f"about {duration(first.predicted.win_ns)}, "
    whole = f"{duration(first.at_most_ns)} of {one(first.per)}"
    return f"To try first: {what}, which saves {about}at most {whole} ({percent(first.at_most_ratio)}){where}."


def first_sentence(found: Headline) -> str:
    """Say it in one sentence, with its figures."""
    lost, whole, share = duration(found.lost_ns), duration(found.of_ns), percent(found.ratio)
    part = None if isinstance(found.part, Stage) else found.part
    most = "" if part is None else f"{lost} of it in {PART_WORDS.get(part, part)}"
    engine = f" of engine {found.engine}" if found.engine else ""
    match found.concern:
        case Concern.FRONTEND if isinstance(found.part, Stage):
            to, when = "first token", "before the engine sees them"
            if found.part in DELIVERY:
                to, when = "last byte", "after the engine has answered"
            return (
                f"Requests wait {lost} of the {whole} to their {to} in {STAGE_WORDS[found.part]} of the API server,"
                f" {when}."
            )
        case Concern.FRONTEND:
            return (
                f"The device{engine} waits {share} of the time for requests on their way to the engine: of each"
                f" {whole} from one step to the next, {most}."
            )
        case Concern.ENGINE:
            return (
                f"The device{engine} waits {share} of the time for the engine's loop: of each {whole} from one step to"
                f" the next, {most}."
            )
        case Concern.HOST:
            return (
                f"The device{engine} waits {share} of the time for its worker's host work: of each {whole} from one"
                f" step to the next, {most}."
            )
        case Concern.QUEUE:
            why = QUEUE_WORDS[found.part]
            return f"Requests wait {lost} of the {whole} to their first token {why}, and the host is not why."
        case Concern.NO_WORK:
            return f"Nothing is held up: the server had no request for {share} of the time."
        case Concern.DEVICE:
            return f"All is well on the host: while there are requests, the device works {share} of the time."
        case Concern.NOTHING:
            return (
                f"Nothing stands out: while there are requests, the device works {share} of the time, and no part of"
                " the host takes a fifth of it."
            )
        case Concern.UNKNOWN:
            return f"Where the time goes is not known yet: {found.reason}."
