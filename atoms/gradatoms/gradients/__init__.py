"""Take gradients and stream them into a store."""

from gradatoms.gradients.harvest import HarvestConfig, HarvestReport, harvest, plan_harvest
from gradatoms.gradients.plan import HarvestPlan

__all__ = ["HarvestConfig", "HarvestPlan", "HarvestReport", "harvest", "plan_harvest"]
