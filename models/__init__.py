"""The reference models: definitions, data, tasks, training and trained weights."""

REFERENCES = ("gan", "cnn", "rnn", "rnn-gru")
