"""Our curvature beside kronfluence's on the same model and documents."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from gradatoms.examples import Example
from gradatoms.gradients.curvature import CurvatureConfig, fit_curvature
from gradatoms.gradients.linear import find_linear
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.models import LoadedModel

pytest.importorskip("kronfluence", reason="needs kronfluence: pip install --no-deps kronfluence einconv opt_einsum")


class Documents(Dataset):  # type: ignore[type-arg]
    """Token ids padded to one width, with a mask of real tokens and of predicted ones."""

    def __init__(self, sequences: list[TokenSequence]) -> None:
        self.sequences, self.width = sequences, max(len(s.ids) for s in sequences)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        s = self.sequences[index]
        ids, real, target = (torch.zeros(self.width, dtype=torch.long) for _ in range(3))
        ids[: len(s.ids)], real[: len(s.ids)], target[:] = torch.tensor(s.ids), 1, -100
        for at, token, _ in s.terms:
            target[at] = token
        return {"ids": ids, "real": real, "target": target}


def kronfluence_factors(
    loaded: LoadedModel, sequences: list[TokenSequence], names: list[str], out: Path, fit: str
) -> Any:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    class Nll(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
            logits = model(input_ids=batch["ids"], use_cache=False).logits
            return nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["target"].flatten(), ignore_index=-100, reduction="sum"
            )

        def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Any) -> torch.Tensor:
            found: torch.Tensor = batch["real"]
            return found

    task = Nll()
    model = prepare_model(copy.deepcopy(loaded.model), task)
    analyzer = Analyzer("x", model, task, cpu=True, disable_tqdm=True, output_dir=str(out))
    arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=True, has_shared_parameters=False)
    options = {"dataset": Documents(sequences), "per_device_batch_size": 4, "factor_args": arguments}
    analyzer.fit_covariance_matrices("f", **options)
    if fit == "covariance":
        return analyzer.load_covariance_matrices("f")
    analyzer.perform_eigendecomposition("f", factor_args=arguments)
    analyzer.fit_lambda_matrices("f", **options)
    return analyzer.load_eigendecomposition("f") | analyzer.load_lambda_matrices("f")


@pytest.mark.filterwarnings("ignore")
def test_eigenvalues_are_those_of_kronfluence(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    """Of both factors, up to the counts that each divides by; of fitted ones the sum, which is the same in every basis."""
    sites = find_linear(tiny, ["v_proj", "down_proj"])
    names = [s.name for s in sites]
    sequences = [one[0] for one in tokenize(tiny, examples)]
    theirs = kronfluence_factors(tiny, sequences, names, tmp_path, "covariance")
    config = CurvatureConfig(fisher="empirical")
    ours = fit_curvature(tiny, examples, sites, config)
    fitted = fit_curvature(tiny, examples, sites, CurvatureConfig(fisher="empirical", eigenvalues="ekfac"))
    tokens, documents = ours.about["tokens"], ours.about["documents"]
    for module, exact in zip(ours.modules, fitted.modules, strict=True):
        A = theirs["activation_covariance"][module.name].double()
        S = theirs["gradient_covariance"][module.name].double()
        assert int(theirs["num_activation_covariance_processed"][module.name]) == tokens
        A, S = A / documents, S / tokens
        product = torch.linalg.eigvalsh(S).flip(0)[:, None] * torch.linalg.eigvalsh(A).flip(0)[None, :]
        difference = (module.eigenvalues.double() - product.clamp_min(0)).norm() / product.norm()
        assert float(difference) < 1e-4
        for Q, M in ((module.Q_A, A), (module.Q_S, S)):
            rotated = Q.double().T @ M @ Q.double()
            assert float((rotated - torch.diag(rotated.diagonal())).norm() / rotated.norm()) < 1e-4
        assert exact.eigenvalues.shape == product.shape
    values = kronfluence_factors(tiny, sequences, names, tmp_path / "lambda", "lambda")
    for exact in fitted.modules:
        count = float(values["num_lambda_processed"][exact.name])
        trace = (
            float(values["lambda_matrix"][exact.name].double().sum()) / count
        )  # of the Fisher matrix, whatever the basis
        assert float(exact.eigenvalues.double().sum()) == pytest.approx(trace, rel=1e-3)
