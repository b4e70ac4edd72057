"""Figures for Plotly as plain dicts, made by pure functions without Streamlit."""
