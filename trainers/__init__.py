"""The trainers that `nnUNetv2_train -tr` finds through `external/`."""
