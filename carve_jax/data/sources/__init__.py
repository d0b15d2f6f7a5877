"""Where text comes from: what every Python carries, as documents, some of them held out whole."""
