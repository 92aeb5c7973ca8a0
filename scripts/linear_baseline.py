"""The floor on FERPlus: softmax regression on 48x48 grey pixels.

python scripts/linear_baseline.py /path/to/ferplus.zip
"""

import sys

import numpy as np
import torch
from torch.nn import functional as F

from qcs.data.manifest import Manifest
from qcs.data.sources import ferplus
from qcs.evaluation.metrics import confusion_matrix, scores


def pixels(manifest: Manifest) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised pixels (N, 2304) and labels (N,)."""
    images = [np.array(manifest.image(i).convert("L")) for i in range(len(manifest))]
    x = torch.from_numpy(np.stack(images)).float().flatten(1)
    x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)
    return x, torch.from_numpy(manifest.labels)


def main(path: str) -> None:
    """Fit on train by Adam, 20 epochs; print the test scores."""
    torch.manual_seed(0)
    manifest = ferplus.read(path)
    (x, y), (x_test, y_test) = pixels(manifest.split("train")), pixels(manifest.split("test"))
    model = torch.nn.Linear(x.shape[1], len(manifest.class_names))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)
    for _ in range(20):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        matrix = confusion_matrix(model(x_test).argmax(1), y_test, len(manifest.class_names))
    print({k: round(100 * float(v), 2) for k, v in scores(matrix).items()}, len(y_test), "images")


if __name__ == "__main__":
    main(sys.argv[1])
