"""What is said of a server's steps and of what is around them, as one report.

In: the two reports. Out: one, in the order of `Advice.place`, of two cards with the same settings the first.
"""

from taxbreak_vllm.model.advice import AdviceReport, Verdict

_ORDER = (Verdict.ACT, Verdict.CONDITIONAL, Verdict.NO_ACTION, Verdict.WITHHELD)


def joined(of_steps: AdviceReport, of_server: AdviceReport) -> AdviceReport:
    """Add to the advice on steps what the server's account says, which weighs the same where its steps are doubtful."""
    advice = sorted((*of_steps.advice, *of_server.advice), key=lambda one: one.place)
    by_settings = {one.settings: one for one in reversed(advice)}
    return AdviceReport(
        verdict=min(of_steps.verdict, of_server.verdict, key=_ORDER.index) if of_server.advice else of_steps.verdict,
        advice=tuple(one for one in advice if by_settings[one.settings] is one),
        reasons=(*of_steps.reasons, *of_server.reasons),
        conditional=of_steps.conditional,
        settled_by=of_steps.settled_by,
        serving=of_steps.serving,
        outcomes=of_steps.outcomes,
    )
