"""One script per page, run by Streamlit."""
