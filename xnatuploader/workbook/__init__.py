"""The .xlsx file: the only room that knows worksheets, cells and zip parts."""
