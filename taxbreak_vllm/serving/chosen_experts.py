"""Which experts the tokens of a recorded step chose, as the routers of its model say it.

In: a worker whose routers tell what they chose (vllm/model_executor/layers/fused_moe/router/base_router.py, 0.26 to
0.33), for one step. Out: how many distinct experts its layers read. That is asked only where it costs a step nothing:
on a device, or in a graph, what a router chose is not at hand, and compiled code would be compiled anew.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taxbreak_vllm.model.shape import ExpertShape
from taxbreak_vllm.serving.drops import logger
from taxbreak_vllm.serving.torch_profile import device_type

_SAY = "set_capture_fn"


def why_uncounted(worker: Any, experts: Sequence[ExpertShape]) -> str | None:  # noqa: ANN401 - a vLLM worker
    """Tell why the choices of a model's experts are not counted; None where they are."""
    if device_type(worker) != "cpu":
        return "which experts its tokens chose is known on its device alone, so it is not counted"
    if len(experts) != 1 or experts[0].local_experts != experts[0].experts:
        return "its experts are spread over ranks, or of several kinds, so those that its tokens chose are not counted"
    try:
        if worker.vllm_config.compilation_config.mode:
            return "its code is compiled, so the experts that its tokens chose are not counted"
        if len(_routers(worker)) == experts[0].layers:
            return None
    except Exception as error:
        logger.debug("taxbreak: the chosen experts are not counted: %r", error)
    return "its routers do not tell which experts its tokens chose"


class ChosenExperts:
    """Has the routers of a model keep what they choose in one step, and lets go of them.

    A router appends the ids it chose, (tokens, top_k), to a list: nothing of ours runs in the step. A fault of ours
    costs the count alone.
    """

    def __init__(self, worker: Any, experts: ExpertShape, queries: int) -> None:  # noqa: ANN401 - a vLLM worker
        self._experts = experts
        self._queries = queries
        self._chosen: list[list[Any]] = []
        self._routers: list[Any] = []
        try:
            for router in _routers(worker):
                chosen: list[Any] = []
                router.set_capture_fn(chosen.append)
                self._routers.append(router)
                self._chosen.append(chosen)
        except Exception as error:
            logger.debug("taxbreak: the chosen experts are not counted: %r", error)
            self.release()
            self._chosen = []

    def release(self) -> None:
        """Have the routers keep no more; what they kept stays."""
        routers, self._routers = self._routers, []
        for router in routers:
            try:
                router.set_capture_fn(None)
            except Exception as error:
                logger.debug("taxbreak: a router keeps our list: %r", error)

    def count(self) -> int | None:
        """Return the distinct experts of each layer, added up, once; None where that is not known.

        On a thread that serves nobody. A number that no choice could lead to is not told.
        """
        chosen, self._chosen = self._chosen, []
        try:
            distinct = [_distinct(kept, self._queries) for kept in chosen]
        except Exception as error:
            logger.debug("taxbreak: the chosen experts are not counted: %r", error)
            return None
        top_k, most = self._experts.top_k, min(self._experts.experts, self._queries * self._experts.top_k)
        is_possible = len(distinct) == self._experts.layers and all(top_k <= each <= most for each in distinct)
        return sum(distinct) if is_possible else None


def _routers(worker: Any) -> list[Any]:  # noqa: ANN401 - a vLLM worker
    """Return the router of each layer of experts, once; none at all where another already listens to one."""
    found = {}
    for module in worker.model_runner.model.modules():
        router = vars(module).get("router")
        if router is not None and hasattr(router, _SAY):
            found[id(router)] = router
    routers = list(found.values())
    return routers if all(getattr(router, "capture_fn", None) is None for router in routers) else []


def _distinct(kept: list[Any], queries: int) -> int:
    """Count the experts in what a router chose in its only call; rows beyond the step's tokens are padding."""
    (ids,) = kept
    return len(np.unique(ids[:queries].numpy()))
