"""Is it the host? One row of numbers answers, the rest shows since when, where, and which layer."""

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import (
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
    bars,
    build,
    lines,
    rate,
    recorded,
    share,
    tile,
    window,
)
from requests_row import requests

UID = "vllm-taxbreak-overview"
BREAKDOWN, HEALTH = "vllm-taxbreak-breakdown", "vllm-taxbreak-health"

LAYERS = {"delta_ft": "ΔFT framework", "delta_ct": "ΔCT library", "delta_kt": "ΔKT launch", "other": "other calls"}
CAUSES = {"host": "idle: host", "blocked": "idle: blocked", "queue": "idle: queue", "edge": "idle: edges"}
PARTS = {
    "input": "takes requests in",
    "schedule": "schedules",
    "grammar": "grammar",
    "dispatch": "sends the step",
    "update": "takes tokens in",
    "post": "sends outputs",
    "loop": "not explained",
    "ipc_dispatch": "call on its way",
    "ipc_return": "result on its way",
    "frontend": "request in the API server",
    "ipc_input": "request on its way",
}

WAITING = (Threshold(None, GREEN), Threshold(0.1, YELLOW), Threshold(0.3, RED))
BALANCE = (Threshold(None, RED), Threshold(0.4, YELLOW), Threshold(0.7, GREEN))

HDBI = f"taxbreak_hdbi{{{STEP}}}"
HOST_IDLE = recorded("taxbreak_device_idle_seconds_total", "phase", f'{STEP},cause="host"')
ACTIVE = recorded("taxbreak_device_active_seconds_total", "phase")
SAMPLED = recorded("taxbreak_sampled_steps_total", "phase")


def step_quantile(quantile: float) -> str:
    """Return a quantile of the plain steps' time by phase, nothing where there was none."""
    return f"histogram_quantile({quantile}, {rate('taxbreak_step_seconds_bucket', 'le, phase')}) >= 0"


def overview() -> Dashboard:
    """Build the dashboard to open first."""
    waits = share(HOST_IDLE, window("phase"))
    exposed = recorded("taxbreak_exposed_orchestration_seconds_total", "component")
    answer = [
        tile(
            "HDBI",
            "Device time over device and host orchestration time, mean over the servers chosen, over the sidecar's "
            "window (15 min by default). 0: the host does nearly all the work; 1: the device does. A low value hurts "
            "only where the device waits for it: see the next panel.",
            NUMBER,
            [Query(f"avg by (phase) ({HDBI})", "{{phase}}")],
            width=4,
            thresholds=BALANCE,
            decimals=2,
            opens=BREAKDOWN,
        ),
        tile(
            "Device waits for the host",
            "Share of a step's device time in which the device stood idle because the host had not launched the next "
            "thing yet. Under 10 % it is not the host: look at the device, the batch or the queue. Above 30 % a faster "
            "GPU buys little: open Breakdown for the layer.",
            RATIO,
            [Query(waits, "{{phase}}")],
            width=5,
            thresholds=WAITING,
            decimals=0,
            opens=BREAKDOWN,
        ),
        tile(
            "Device works",
            "Share of a step's device time in which at least one kernel or copy ran. What is called GPU utilisation "
            "elsewhere is higher: it counts a sampling period as busy if anything ran in it.",
            RATIO,
            [Query(share(ACTIVE, window("phase")), "{{phase}}")],
            width=4,
            decimals=0,
        ),
        tile(
            "Step time, median",
            "Median wall time of an engine step on the worker, over all steps that were not recorded.",
            SECONDS,
            [Query(step_quantile(0.5), "{{phase}}")],
            width=4,
        ),
        bars(
            "Which layer the device waits for",
            "Share of a step's device time spent waiting for each layer of the host: framework (Python and op "
            "dispatch), vendor library, launch path, other runtime calls. The longest bar is where to start; open "
            "Breakdown for more.",
            RATIO,
            [Query(share(exposed, window(""), one_side="component"), "{{component}}")],
            width=7,
            thresholds=WAITING,
            names=LAYERS,
            opens=BREAKDOWN,
        ),
    ]
    when = [
        lines(
            "HDBI by phase",
            "Device time over device and host orchestration time. A step down after a deploy means more host work or "
            "less device work for each step.",
            NUMBER,
            [Query(f"avg by (model_name, phase) ({HDBI})", "{{model_name}} {{phase}}")],
            top=1,
        ),
        lines(
            "Device waits for the host, by phase",
            "Share of a step's device time in which the device stood idle because of the host. The dashed lines are "
            "10 % and 30 %.",
            RATIO,
            [Query(waits, "{{phase}}")],
            thresholds=WAITING,
            limit=True,
            top=1,
        ),
        lines(
            "Step time",
            "Wall time of engine steps that were not recorded: median and 99th percentile by phase.",
            SECONDS,
            [Query(step_quantile(0.5), "{{phase}} p50"), Query(step_quantile(0.99), "{{phase}} p99")],
        ),
        lines(
            "Host work and device work of a step",
            "Mean of the recorded steps: what the host spends to drive a step (ΔFT + ΔCT + ΔKT), what the device works "
            "for it, and how long the device waits for the host. Host work that the device does not wait for is "
            "hidden behind it and costs nothing.",
            SECONDS,
            [
                Query(
                    share(recorded("taxbreak_orchestration_seconds_total", "phase"), SAMPLED), "{{phase}} host works"
                ),
                Query(share(ACTIVE, SAMPLED), "{{phase}} device works"),
                Query(share(HOST_IDLE, SAMPLED), "{{phase}} device waits for the host"),
            ],
        ),
    ]
    iterations = rate("taxbreak_engine_iterations_total", "", SERVER)
    between = [
        bars(
            "What a worker stands idle for between two calls",
            "Mean over all iterations of the engines chosen, recorded or not: the part of the engine's loop at work "
            "while the worker had nothing to do. Empty where the engine works a step ahead (asynchronous "
            "scheduling): what the device waits for there is told by recorded steps alone.",
            SECONDS,
            [
                Query(
                    share(rate("taxbreak_engine_exposed_seconds_total", "part", SERVER), iterations, one_side="part"),
                    "{{part}}",
                ),
                Query(
                    share(
                        rate("taxbreak_idle_between_steps_seconds_total", "cause", f'{SERVER},cause!="no_work"'),
                        iterations,
                        one_side="cause",
                    ),
                    "{{cause}}",
                ),
            ],
            width=12,
            height=8,
            names=PARTS,
        ),
        lines(
            "How busy the engine's thread is",
            "Share of a second that the engine's thread works, by part, whether a worker waits for it or not; over "
            "several engines their sum. Near 1 the engine itself is the limit.",
            RATIO,
            [Query(rate("taxbreak_engine_busy_seconds_total", "part", SERVER), "{{part}}")],
            names=PARTS,
        ),
    ]
    where = [
        bars(
            "Most host-bound servers",
            "The ten workers with the lowest HDBI, phase by phase. Narrow the variables above to one of them.",
            NUMBER,
            [
                Query(
                    f"bottomk(10, avg by (model_name, instance, engine, rank, phase) ({HDBI}))",
                    "{{model_name}} {{phase}} · {{instance}} engine {{engine}} rank {{rank}}",
                )
            ],
            width=12,
            height=8,
            thresholds=BALANCE,
        ),
        lines(
            "Steps by phase",
            "Engine steps in a second that were timed without being recorded.",
            PER_SECOND,
            [Query(rate("taxbreak_steps_total", "phase"), "{{phase}}")],
        ),
    ]
    overhead = f"max(taxbreak_capture_overhead_ratio{{{SERVER}}})"
    trust = [
        tile(
            "Cost of measuring",
            "Largest share of serving time that recording has taken since a server started. The budget is 0.5 %.",
            RATIO,
            [Query(overhead, "worst server")],
            width=8,
            thresholds=(Threshold(None, GREEN), Threshold(0.005, RED)),
            decimals=3,
            opens=HEALTH,
        ),
        tile(
            "Recorded steps",
            "Recorded steps in a second that reached the figures above. Few make them jump; none makes them stand "
            "still: open Health.",
            PER_SECOND,
            [Query(SAMPLED, "{{phase}}")],
            width=8,
            decimals=2,
            opens=HEALTH,
        ),
        tile(
            "Oldest capture that waits",
            "Age of the oldest recorded step that is not analyzed yet. The figures above are late by about this.",
            SECONDS,
            [Query(f"max(taxbreak_analysis_lag_seconds{{{SCRAPED}}})", "oldest")],
            width=8,
            thresholds=(Threshold(None, GREEN), Threshold(60, YELLOW), Threshold(300, RED)),
            opens=HEALTH,
        ),
    ]
    return build(
        UID,
        "Overview",
        "Is the host holding the GPU back? Read the first row; its bars name the layer.",
        {
            "Is it the host?": answer,
            "Since when?": when,
            "From one step to the next": between,
            "Requests": requests(),
            "Where?": where,
            "Can these figures be trusted?": trust,
        },
    )
