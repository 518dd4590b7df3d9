"""Take gradients and stream them into a store."""

from gradatoms.gradients.harvest import HarvestReport, harvest, plan_harvest
from gradatoms.gradients.plan import HarvestPlan
from gradatoms.gradients.ranks import Ranks, divide, parse_shard
from gradatoms.gradients.skipped import Skipped, read_skipped
from gradatoms.gradients.task import HarvestConfig

__all__ = [
    "HarvestConfig",
    "HarvestPlan",
    "HarvestReport",
    "Ranks",
    "Skipped",
    "divide",
    "harvest",
    "parse_shard",
    "plan_harvest",
    "read_skipped",
]
