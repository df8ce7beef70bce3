"""Data order and loading: which tokens a global instance number stands for."""
