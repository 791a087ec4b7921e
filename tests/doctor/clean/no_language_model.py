"""Nothing of a language model at all."""

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

rows = pd.read_csv("flowers.csv")
train, test = train_test_split(rows, test_size=0.25, random_state=5, stratify=rows["kind"])
forest = RandomForestClassifier(n_estimators=200, random_state=5).fit(train.drop(columns="kind"), train["kind"])
print(f1_score(test["kind"], forest.predict(test.drop(columns="kind")), average="macro"))
growth = np.exp(np.linspace(0, 1, 10)).mean()
print(growth, test.sample(n=3, random_state=1))
