package pods

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/runtime"
)

// record is what a restarted agent has to know of a pod besides what the runtime and the kernel tell.
type record struct {
	// Taken is when the pod was taken on.
	Taken time.Time `json:"taken"`
	// State is what the last status was computed from.
	State runtime.PodState `json:"state"`
	// Expired says that the pod was active for longer than its deadline, and that the node ends it for that.
	Expired bool `json:"expired,omitempty"`
	// Finished says that the pod is not to be started again.
	Finished bool `json:"finished"`
	// Status is the status that cluster confirmed last (podwire.object.v1.PodStatus), stored at Revision.
	Status   []byte `json:"status,omitempty"`
	Revision int64  `json:"revision,omitempty"`
}

const recordSuffix = ".json"

func recordPath(dir, uid string) string { return filepath.Join(dir, uid+recordSuffix) }

// readRecord is empty where there is none. One that is damaged costs no more than a status that is sent again, so it
// does not keep the pod from being adopted.
func readRecord(dir, uid string, log *slog.Logger) record {
	var r record
	b, err := os.ReadFile(recordPath(dir, uid))
	if errors.Is(err, fs.ErrNotExist) {
		return r
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		log.Warn("what was known of a pod is lost", "uid", uid, "error", err)
		return record{}
	}
	return r
}

// save writes the record where it changed. A pod with a problem has none: its UID may be no file name.
func (w *worker) save() {
	w.mu.Lock()
	r, due := w.record, w.unsaved && w.row.problem == nil && !w.row.orphan
	w.unsaved = false
	w.mu.Unlock()
	if !due {
		return
	}
	b, err := json.Marshal(r)
	path := recordPath(w.s.cfg.Dir, w.uid)
	if err == nil {
		err = os.WriteFile(path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		w.s.cfg.Log.Error("what is known of a pod is not on disk", "pod", w.current().ref.String(), "error", err)
	}
}

func removeRecord(dir, uid string) error {
	if filepath.Base(uid) != uid {
		return nil // no file name, so it has no record
	}
	err := os.Remove(recordPath(dir, uid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errs.WrapAs(errs.Internal, err, "pods: state")
}

// recordedUIDs are the pods that have a record.
func recordedUIDs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "pods: state")
	}
	var out []string
	for _, e := range entries {
		if uid, ok := strings.CutSuffix(e.Name(), recordSuffix); ok {
			out = append(out, uid)
		}
	}
	return out, nil
}
