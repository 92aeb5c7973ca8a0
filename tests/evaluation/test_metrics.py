import pytest
import torch

from qcs.evaluation.metrics import class_scores, confusion_matrix, scores


def _reference(predictions: list[int], labels: list[int], k: int) -> dict[str, float]:
    pairs = list(zip(predictions, labels, strict=True))
    recalls, f1s = [], []
    for c in range(k):
        hits = sum(p == c == y for p, y in pairs)
        true, predicted = labels.count(c), predictions.count(c)
        if true:
            recalls.append(hits / true)
            f1s.append(2 * hits / (true + predicted))
    acc = sum(p == y for p, y in pairs) / len(pairs)
    return {"acc": acc, "mean_acc": sum(recalls) / len(recalls), "f1": sum(f1s) / len(f1s)}


@pytest.mark.parametrize("classes_present", [4, 3])
def test_scores_match_plain_loops(classes_present):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes_present, (50,), generator=generator)
    predictions = torch.randint(0, 4, (50,), generator=generator)
    got = scores(confusion_matrix(predictions, labels, 4))
    for key, value in _reference(predictions.tolist(), labels.tolist(), 4).items():
        assert got[key].item() == pytest.approx(value)


def test_rows_of_the_confusion_matrix_are_true_classes():
    matrix = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), 2)
    assert matrix.tolist() == [[1, 1], [0, 1]]
    by_class = class_scores(matrix)
    assert by_class["recall"].tolist() == [0.5, 1.0]
    assert by_class["precision"].tolist() == [1.0, 0.5]
    assert by_class["support"].tolist() == [2, 1]
