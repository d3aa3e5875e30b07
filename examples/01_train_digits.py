"""Train on the embedded handwritten digits, look at the result, open the test split once.

python examples/01_train_digits.py
"""

import convsmith

run = convsmith.train(data="digits", model="simple-cnn", epochs=5)
print(run.summary["val"])
print("test accuracy", run.evaluate("test")["accuracy"])
