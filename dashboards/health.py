"""Is the tool honest? What measuring costs, how much of it arrives, how late, and what was lost."""

from grafana_foundation_sdk.models.dashboard import Dashboard
from overview import HEALTH
from panels import (
    BYTES,
    GREEN,
    NUMBER,
    PER_SECOND,
    RATIO,
    RED,
    SCRAPED,
    SECONDS,
    SERVER,
    STEP,
    YELLOW,
    Query,
    Threshold,
    build,
    lines,
    recorded,
    share,
    tile,
)

TIERS = {"replayed": "replayed here", "family": "family's median", "trace": "from the trace", "floor": "floor only"}

BUDGET = (Threshold(None, GREEN), Threshold(0.005, RED))
LATE = (Threshold(None, GREEN), Threshold(60, YELLOW), Threshold(300, RED))

WORKER, WORKER_NAME = "model_name, instance, engine, rank", "{{model_name}} · {{instance}} rank {{rank}}"
OVERHEAD = f"taxbreak_capture_overhead_ratio{{{SERVER}}}"
ENABLED = f"taxbreak_recording_enabled{{{SERVER}}}"
LAG = f"max by (instance) (taxbreak_analysis_lag_seconds{{{SCRAPED}}})"
SPOOL = f"sum by (instance) (taxbreak_spool_bytes{{{SCRAPED}}})"
SAMPLED, PLAIN = recorded("taxbreak_sampled_steps_total", "phase"), recorded("taxbreak_steps_total", "phase")

# Reasons are there from their first drop on; a server that steps and has lost nothing shows one line at 0.
DROPPED = (
    f"{recorded('taxbreak_samples_dropped_total', 'reason', SERVER)}"
    f' or label_replace(0 * {recorded("taxbreak_steps_total", "", SERVER)}, "reason", "none", "", "")'
)

# As above: a server of whose steps all is known shows one line at 0.
WITHHELD = (
    f"({recorded('taxbreak_withheld_steps_total', 'figure')}"
    f' or label_replace(0 * {recorded("taxbreak_sampled_steps_total", "")}, "figure", "none", "", ""))'
)


def health() -> Dashboard:
    """Build the dashboard about the tool itself."""
    now = [
        tile(
            "Sidecars and workers",
            "Sidecars that are scraped, by version, and vLLM's workers that run, by what they are built of.",
            NUMBER,
            [
                Query(f"count by (version) (taxbreak_build_info{{{SCRAPED}}})", "{{version}}"),
                Query(
                    f"count by (vllm, torch, settings_hash) (taxbreak_server_info{{{SERVER}}})",
                    "vLLM {{vllm}} · torch {{torch}} · settings {{settings_hash}}",
                ),
            ],
            width=4,
        ),
        tile(
            "Recording",
            "Servers that record steps, and servers where recording is off: by setting, or by itself because it could "
            "not keep to its budget. Steps are timed all the same.",
            NUMBER,
            [Query(f"sum({ENABLED})", "on"), Query(f"sum(1 - {ENABLED})", "off")],
            width=4,
        ),
        tile(
            "Cost of measuring",
            "Largest share of serving time that recording has taken since a server started: profiler start and stop "
            "and the slowdown of recorded steps. The budget is 0.5 %.",
            RATIO,
            [Query(f"max({OVERHEAD})", "worst server")],
            width=4,
            thresholds=BUDGET,
            decimals=3,
        ),
        tile(
            "Recorded steps",
            "Recorded steps in a second that were analyzed.",
            PER_SECOND,
            [Query(SAMPLED, "{{phase}}")],
            width=4,
            decimals=2,
        ),
        tile(
            "Oldest capture that waits",
            "Age of the oldest recorded step that is not analyzed yet, of the latest sidecar.",
            SECONDS,
            [Query(f"max({LAG})", "oldest")],
            width=4,
            thresholds=LATE,
        ),
        tile(
            "Spool",
            "Bytes of all captures, over the sidecars chosen. The oldest go first once a spool is full.",
            BYTES,
            [Query(f"sum({SPOOL})", "all")],
            width=4,
        ),
    ]
    cost = [
        lines(
            "Cost of measuring, by server",
            "Share of serving time that recording has taken since the server started. The dashed line is the budget, "
            "0.5 %.",
            RATIO,
            [Query(f"max by ({WORKER}) ({OVERHEAD})", WORKER_NAME)],
            thresholds=BUDGET,
            limit=True,
        ),
        lines(
            "Slowdown of a recorded step",
            "Recorded over plain duration, median of the sidecar's window, worst server. The profiler's known cost is "
            "taken off ΔFT; a large factor means that more of the rest is uncertain.",
            NUMBER,
            [Query(f"max by (phase) (taxbreak_profiler_dilation_ratio{{{STEP}}})", "{{phase}}")],
        ),
    ]
    coverage = [
        lines(
            "Steps that are recorded",
            "Recorded and analyzed steps over all steps.",
            RATIO,
            [Query(share(SAMPLED, f"({SAMPLED} + {PLAIN})"), "{{phase}}")],
            width=6,
        ),
        lines(
            "Where baselines come from",
            "Share of orchestration time that rests on each kind of baseline, mean over servers and phases. The more "
            "is replayed on the machine itself, the better ΔCT and ΔKT are known.",
            RATIO,
            [Query(f"avg by (tier) (taxbreak_replay_coverage_ratio{{{STEP}}})", "{{tier}}")],
            stacked=True,
            names=TIERS,
            top=1,
            width=6,
        ),
        lines(
            "Figures withheld",
            "Share of recorded steps whose recording was not enough for a figure, by figure; the notes of such a step "
            "say what it lacked. Sums leave these steps out.",
            RATIO,
            [Query(share(WITHHELD, recorded("taxbreak_sampled_steps_total", ""), one_side="figure"), "{{figure}}")],
            width=6,
        ),
        lines(
            "Lost samples, by reason",
            "Samples in a second that were recorded or due and never analyzed. Requests are served all the same.",
            PER_SECOND,
            [Query(DROPPED, "{{reason}}")],
            width=6,
        ),
    ]
    lag = [
        lines(
            "Oldest capture that waits, by sidecar",
            "Age of the oldest recorded step that is not analyzed yet. The dashed lines are 1 and 5 min.",
            SECONDS,
            [Query(LAG, "{{instance}}")],
            thresholds=LATE,
            limit=True,
            width=8,
        ),
        lines(
            "Spool, by sidecar",
            "Bytes of all captures. It levels out at TAXBREAK_SPOOL_MAX_BYTES.",
            BYTES,
            [Query(SPOOL, "{{instance}}")],
            width=8,
        ),
        lines(
            "Scrape",
            "How long Prometheus takes to scrape a sidecar.",
            SECONDS,
            [Query(f"max by (instance) (scrape_duration_seconds{{{SCRAPED}}})", "{{instance}}")],
            width=8,
        ),
    ]
    return build(
        HEALTH,
        "Health",
        "Is the tool honest: what measuring costs, how much of it arrives, how late, and what was lost.",
        {"Now": now, "Overhead": cost, "Coverage and drops": coverage, "Lag and storage": lag},
    )
