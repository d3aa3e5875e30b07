"""Train on a folder of class folders, with augmentation, and predict single files.

python examples/02_own_images.py FOLDER
"""

import sys
from pathlib import Path

import convsmith

folder = Path(sys.argv[1])
run = convsmith.train(
    data={"source": folder, "image_size": 48},
    epochs=8,
    augment={"hflip": True, "random_resized_crop": 0.4},
    train={"patience": 3},
)
for prediction in run.predict(sorted(folder.rglob("*.jpg"))[:5]):
    print(prediction.id, prediction.label, f"{prediction.confidence:.1%}")
