package shim

import (
	"fmt"
	"os"
	"path/filepath"
)

// logWriter appends to DIR/log and moves it to DIR/log.1 when it is full. It never
// fails: a container must not stop because a disk is full.
type logWriter struct {
	dir   string
	limit int64
	file  *os.File
	size  int64
	// lost counts bytes that could not be written since the last that could.
	lost int64
}

func openLog(dir string, limit int64) (*logWriter, error) {
	if limit <= 0 {
		limit = DefaultLogLimit
	}
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	return &logWriter{dir: dir, limit: limit, file: f}, nil
}

// Write takes what the container wrote, whole.
func (w *logWriter) Write(p []byte) (int, error) {
	if w.size > 0 && w.size+int64(len(p)) > w.limit {
		w.rotate()
	}
	if w.lost > 0 {
		note := fmt.Sprintf("\n[%d bytes of log lost: could not be written]\n", w.lost)
		if n, err := w.file.WriteString(note); err == nil {
			w.size += int64(n)
			w.lost = 0
		}
	}
	n, err := w.file.Write(p)
	w.size += int64(n)
	if err != nil {
		w.lost += int64(len(p) - n)
	}
	return len(p), nil
}

// rotate begins a new file. If that fails the old one goes on past its limit by one
// more piece, and the next write tries again.
func (w *logWriter) rotate() {
	path := filepath.Join(w.dir, logFile)
	if err := os.Rename(path, filepath.Join(w.dir, oldLog)); err != nil {
		if terr := w.file.Truncate(0); terr == nil {
			w.size = 0
		}
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		_ = os.Rename(filepath.Join(w.dir, oldLog), path)
		return
	}
	w.file.Close()
	w.file, w.size = f, 0
}

// Close ends the log.
func (w *logWriter) Close() error { return w.file.Close() }
