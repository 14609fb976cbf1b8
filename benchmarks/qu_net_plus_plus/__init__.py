"""The experiment of QU-Net++ on real OCT, CT and MR."""
