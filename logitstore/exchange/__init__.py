"""Stores to and from other forms: npz captures, tables, and the layouts of other projects."""
