"""A student learns from its own words: it answers, the teacher scores, training goes on."""
