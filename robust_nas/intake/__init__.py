"""Models from anywhere: run folders of ours, modules of one's own, torchvision; and their diagnosis.

    runs/RUN                                        all trained models of a run
    runs/RUN/checkpoints/model-1.safetensors        one of them
    package.module:attribute                        an nn.Module, or what returns one when called without arguments
    path/to/file.py:attribute@weights.safetensors   the same, with weights
    path/to/file.py:attribute@checkpoint.pt         the same, with the tensors that torch.save wrote
    torchvision:resnet18@IMAGENET1K_V1              a classifier of torchvision's, with weights of its own or a file's
    torchvision:resnet18?num_classes=10             without

An attack needs logits of images in [0, 1]. With a model that gives probabilities or expects other pixels, gradients
vanish or the accuracy is low, and the model would look robust or bad for the wrong reason.
"""

from robust_nas.intake.diagnosis import check_labels, check_model, check_numbers, check_outputs, diagnose
from robust_nas.intake.independence import dependence
from robust_nas.intake.loading import (
    absolute_name,
    check_named,
    chosen_architectures,
    chosen_networks,
    files_of,
    load_models,
    own_model,
    own_space,
    short_name,
    trained_network,
)
from robust_nas.intake.making import description, make
from robust_nas.models.named import made_by
from robust_nas.models.preparation import NORMALISATIONS, LogProbabilities, Normalised, prepared
from robust_nas.models.weights import check_weights_file, load_weights

__all__ = [
    "NORMALISATIONS",
    "LogProbabilities",
    "Normalised",
    "absolute_name",
    "check_labels",
    "check_model",
    "check_named",
    "check_numbers",
    "check_outputs",
    "check_weights_file",
    "chosen_architectures",
    "chosen_networks",
    "dependence",
    "description",
    "diagnose",
    "files_of",
    "load_models",
    "load_weights",
    "made_by",
    "make",
    "own_model",
    "own_space",
    "prepared",
    "short_name",
    "trained_network",
]
