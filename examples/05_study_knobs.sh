#!/bin/sh
# Common settings, one run each, on the embedded digits. The results are in runs/*/summary.json.
#   sh examples/05_study_knobs.sh
set -e
for activation in relu tanh sigmoid; do
    convsmith train --model.activation $activation --epochs 3
done
convsmith train --optim.name sgd --lr 0.05 --optim.momentum 0.9 --schedule.name step --schedule.step_epochs 2 --epochs 4
convsmith train --regularize.l1 1e-4 --regularize.l1_mode proximal --epochs 3
convsmith train --train.patience 3 --epochs 20
