package supervise

// RotateLog opens the rotation of one log to tests.
func RotateLog(path string, limit int64) error { return rotateLog(path, limit) }
