"""Where datasets lie: folders, object stores, HDFS."""
