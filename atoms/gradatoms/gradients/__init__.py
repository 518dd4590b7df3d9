"""Take gradients and stream them into a store."""

from gradatoms.gradients.harvest import HarvestConfig, HarvestReport, harvest

__all__ = ["HarvestConfig", "HarvestReport", "harvest"]
