"""The nouns of the project: what one stage hands to the next. Nothing here imports anything of ours but siblings."""
