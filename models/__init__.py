"""The reference models: definitions, data, tasks, training and trained weights."""

REFERENCES = ("gan", "cnn", "rnn", "rnn-gru")
EDGES = ("gan-edge", "cnn-edge", "rnn-edge")  # what the recipe of that name made of a reference
SHIPPED = (*REFERENCES, *EDGES)
