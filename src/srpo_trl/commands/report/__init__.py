"""`srpo-trl report`: one HTML file about one or several runs, from their logs alone. No torch is imported here."""
