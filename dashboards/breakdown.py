"""Which layer? The host's work by component, what of it the device feels, what the device does and what it is sent."""

from grafana_foundation_sdk.models.dashboard import Dashboard
from overview import BREAKDOWN, CAUSES, LAYERS, WAITING
from panels import (
    NUMBER,
    ONLY_ON_GPUS,
    RATIO,
    SECONDS,
    SERVER,
    STEP,
    Query,
    bars,
    build,
    lines,
    rate,
    recorded,
    share,
    steps_that_know,
    window,
)

MODES = {"none": "eager", "piecewise": "piecewise graphs", "full": "full graph"}

WORK = recorded("taxbreak_orchestration_seconds_total", "component")
ALL_WORK = recorded("taxbreak_orchestration_seconds_total", "")
EXPOSED = recorded("taxbreak_exposed_orchestration_seconds_total", "component")
STEPS, STEPS_BY_PHASE = recorded("taxbreak_sampled_steps_total", ""), recorded("taxbreak_sampled_steps_total", "phase")
LAUNCHES = recorded("taxbreak_launches_total", "phase")
KERNELS = recorded("taxbreak_kernels_total", "phase")
TOKENS = recorded("taxbreak_sampled_output_tokens_total", "phase")

BAR = recorded("taxbreak_limit_bar_seconds_total", "part")
PARTS = {
    "limit": "hard limit",
    "above": "kernels above it",
    "delta_ft": "waits: ΔFT framework",
    "delta_ct": "waits: ΔCT library",
    "delta_kt": "waits: ΔKT launch path",
    "other": "waits: other calls",
    "engine": "waits: engine loop",
    "other_idle": "other idle",
    "unknown": "unknown",
}
NO_TURN = "The recorded batches lie on one side, or do not agree: taxbreak transition says why"
TOLD = "A limit is told where the worker could walk its model and the device's ceilings are known."
NO_LIMIT = "No limit is told: no step was recorded, or the device's ceilings are not known"

FELT = (
    "ΔFT: Python and op dispatch (vLLM, torch.compile, CUDA graphs and a faster core lower it). ΔCT: what a vendor "
    "library adds before it launches. ΔKT: the launch path's own floor (fewer launches lower it)."
)


def breakdown() -> Dashboard:
    """Build the dashboard that names the layer."""
    layer = [
        bars(
            "Host work by layer",
            f"Share of the host's orchestration time in each layer. {FELT} A layer that this machine cannot measure "
            "is absent.",
            RATIO,
            [Query(share(WORK, ALL_WORK, one_side="component"), "{{component}}")],
            width=12,
            names=LAYERS,
        ),
        bars(
            "Device waits for, by layer",
            "Share of a step's device time spent waiting for each layer. Only this part of a layer's work is felt by "
            "a request: a long bar on the left beside a short one here is hidden behind the device.",
            RATIO,
            [Query(share(EXPOSED, window(""), one_side="component"), "{{component}}")],
            width=12,
            thresholds=WAITING,
            names=LAYERS,
        ),
        lines(
            "Host work of a step",
            f"Mean host orchestration time of a recorded step, by layer. {FELT}",
            SECONDS,
            [Query(share(WORK, steps_that_know("taxes", ""), one_side="component"), "{{component}}")],
            stacked=True,
            names=LAYERS,
        ),
        lines(
            "Waiting of a step",
            "Mean time of a recorded step in which the device waits for the host, by the layer it waits for: the most "
            "that work on that layer can win.",
            SECONDS,
            [Query(share(EXPOSED, steps_that_know("causes", ""), one_side="component"), "{{component}}")],
            stacked=True,
            names=LAYERS,
        ),
    ]
    idle = recorded("taxbreak_device_idle_seconds_total", "cause")
    active = recorded("taxbreak_device_active_seconds_total", "")
    device = [
        lines(
            "What the device does",
            "Share of a step's device time. Works: a kernel or copy runs. Idle, by cause: host (the next launch had "
            "not been issued), blocked (the host sat in a synchronizing call), queue (issued, not started), edges "
            "(before the first and after the last activity).",
            RATIO,
            [
                Query(share(active, window("")), "works"),
                Query(share(idle, window(""), one_side="cause"), "{{cause}}"),
            ],
            stacked=True,
            names=CAUSES,
            top=1,
        ),
        lines(
            "Device work of a step",
            "Mean time of a recorded step in which the device works. It falls with a faster device, quantization or "
            "better kernels.",
            SECONDS,
            [
                Query(
                    share(
                        recorded("taxbreak_device_active_seconds_total", "phase"), steps_that_know("causes", "phase")
                    ),
                    "{{phase}}",
                )
            ],
        ),
    ]
    launches = [
        lines(
            "Launches of a step (GPU)",
            "Launches of device work in a recorded step: kernels, copies, fills, and each graph replay once. Absent "
            "where the device is the CPU.",
            NUMBER,
            [Query(share(LAUNCHES, STEPS_BY_PHASE), "{{phase}}")],
            empty=ONLY_ON_GPUS,
        ),
        lines(
            "Kernels for each output token",
            "Kernels of recorded steps over the tokens they produced. It falls with a larger batch and with fusion.",
            NUMBER,
            [Query(share(KERNELS, TOKENS), "{{phase}}")],
        ),
        lines(
            "Kernels for each launch (GPU)",
            "About 1 without CUDA graphs; a graph replay is one launch of many kernels. Absent where the device is the "
            "CPU.",
            NUMBER,
            [Query(share(KERNELS, LAUNCHES), "{{phase}}")],
            empty=ONLY_ON_GPUS,
        ),
        lines(
            "Launch to start (GPU)",
            "TKLQT over launches: how long a launch waits until its kernel starts, beside the floor measured on the "
            "machine. At the floor the device is idle when work comes (host-bound); far above it work queues "
            "(device-bound). Absent where the device is the CPU.",
            SECONDS,
            [
                Query(share(recorded("taxbreak_tklqt_seconds_total", "phase"), LAUNCHES), "{{phase}}"),
                Query(f"max by (kind) (taxbreak_launch_floor_seconds{{{SERVER}}})", "floor: {{kind}}"),
            ],
            empty=ONLY_ON_GPUS,
        ),
        lines(
            "Requests from which on the device decides",
            "The size of a batch from which on the device, not the host, decides how long a step takes: below it a "
            "larger batch is free. By recorded steps of the window, where TKLQT for each launch doubles, else where "
            "HDBI passes one half.",
            NUMBER,
            [Query(f"max by (phase) (taxbreak_transition_requests{{{STEP}}})", "{{phase}}")],
            empty=NO_TURN,
        ),
        lines(
            "Prompt tokens from which on the device decides",
            "The same of steps that work on prompts: below it a larger --max-num-batched-tokens is free.",
            NUMBER,
            [Query(f"max by (phase) (taxbreak_transition_prompt_tokens{{{STEP}}})", "{{phase}}")],
            empty=NO_TURN,
        ),
        lines(
            "Kernels of a step, by family",
            "Mean number of kernels of a recorded step. Many small ones of one family are candidates for fusion.",
            NUMBER,
            [Query(share(recorded("taxbreak_kernels_total", "family"), STEPS, one_side="family"), "{{family}}")],
            stacked=True,
        ),
        lines(
            "Steps by graph mode",
            "Share of all steps that ran eagerly or from CUDA graphs. Decode steps that run eagerly pay ΔFT and ΔKT "
            "for each kernel: see vLLM's CUDA graph mode and capture sizes.",
            RATIO,
            [
                Query(
                    share(
                        rate("taxbreak_steps_total", "graph_mode"),
                        rate("taxbreak_steps_total", ""),
                        one_side="graph_mode",
                    ),
                    "{{graph_mode}}",
                )
            ],
            stacked=True,
            names=MODES,
            top=1,
        ),
    ]
    limit = [
        lines(
            "To the hardware's limit",
            "What the device's time goes to, as shares of the iterations of recorded steps: the least time that the "
            "hardware allows, kernels above it, the layers of the host and the engine that the device waits for, other "
            f"idle time, and what is not known. They sum to 1. {TOLD}",
            RATIO,
            [Query(share(BAR, recorded("taxbreak_limit_bar_seconds_total", ""), one_side="part"), "{{part}}")],
            stacked=True,
            names=PARTS,
            top=1,
        ),
        lines(
            "MFU and MBU",
            "The least time of the products (MFU) and of the bytes (MBU) of recorded steps, each over whole "
            f"iterations: the larger is what the step is bound by, 1 is the hardware's limit. {TOLD}",
            RATIO,
            [
                Query(
                    share(
                        recorded("taxbreak_limit_work_seconds_total", "work, phase"),
                        recorded("taxbreak_limit_told_seconds_total", "phase"),
                        one_side="work",
                    ),
                    "{{work}} {{phase}}",
                )
            ],
            empty=NO_LIMIT,
            top=1,
        ),
    ]
    return build(
        BREAKDOWN,
        "Breakdown",
        "Which layer of the host holds the device back, and what the device is sent. Choose a phase above.",
        {
            "Which layer?": layer,
            "What does the device do?": device,
            "How far is it from the hardware's limit?": limit,
            "What is it sent?": launches,
        },
    )
