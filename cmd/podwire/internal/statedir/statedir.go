// Package statedir says where things are in the state directory of an instance that `podwire up` made, and which
// directory is one.
//
// In: a path that somebody typed. Out: the instance's id and the paths of its files, sockets and pinned namespaces.
// Invariants: one directory has one id, however it was spelled; a directory without our marker is not ours. The package
// must not start, stop or create anything but the marker.
package statedir

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"podwire.dev/internal/errs"
)

// Default is the state directory where neither --state nor PODWIRE_STATE names one.
const Default = "/var/lib/podwire"

// The namespaces of an instance besides those of services and nodes.
const (
	Underlay = "underlay"
	Outside  = "outside"
)

// MarkerFile makes a directory a state directory.
const MarkerFile = "podwire.state"

const (
	// maxSocketPath is sizeof(sun_path) - 1 on Linux (unix(7)).
	maxSocketPath = 107
	// longestSocket is the longest path below the directory that a socket gets, also while it is being made.
	longestSocket = "/nodes/node-150/agent.sock.4194304"
)

// Dir is a state directory: an absolute path without symbolic links. The zero Dir is none.
type Dir string

// Resolve is the state directory that a path names. It need not exist. Errors are Invalid: sockets below it would not
// fit into the 107 bytes that Linux has for the path of one.
func Resolve(path string) (Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", errs.WrapAs(errs.Invalid, err, "state directory %q", path)
	}
	found, err := realPath(abs)
	if err != nil {
		return "", errs.WrapAs(errs.Invalid, err, "state directory %s", abs)
	}
	if limit := maxSocketPath - len(longestSocket); len(found) > limit {
		return "", errs.New(errs.Invalid, "state directory %s: the path has %d bytes: must have at most %d, since Linux allows %d for the sockets in it; "+
			"choose a shorter one with --state", found, len(found), limit, maxSocketPath)
	}
	if found == "/" {
		return "", errs.New(errs.Invalid, "state directory /: must be a directory of its own")
	}
	return Dir(found), nil
}

// realPath follows the symbolic links of as much of a path as exists.
func realPath(path string) (string, error) {
	found, err := filepath.EvalSymlinks(path)
	if err == nil {
		return found, nil
	}
	if !errors.Is(err, fs.ErrNotExist) || path == "/" {
		return "", err
	}
	parent, err := realPath(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

// ID tells instances on one machine apart: 6 hexadecimal digits.
func (d Dir) ID() string {
	sum := sha256.Sum256([]byte(d))
	return hex.EncodeToString(sum[:3])
}

// Prefix begins the names of the instance's namespaces in /run/netns: pw<id>-.
func (d Dir) Prefix() string { return "pw" + d.ID() + "-" }

// Path is a path below the directory.
func (d Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// Socket is where a service listens for root of this machine.
func (d Dir) Socket(service string) string { return d.Path("run", service+".sock") }

// AgentSocket is where the agent of a node does.
func (d Dir) AgentSocket(node string) string { return d.Path("nodes", node, "agent.sock") }

// Config is the file that a child process reads.
func (d Dir) Config(child string) string { return d.Path("config", child+".yaml") }

// Log is the file that a child's standard error goes to.
func (d Dir) Log(child string) string { return d.Path("log", child+".log") }

// Child is what the supervisor last saw of a child.
func (d Dir) Child(child string) string { return d.Path("children", child+".json") }

// Identity is the directory of a service's certificate.
func (d Dir) Identity(service string) string {
	switch service {
	case "etcd", "cluster", "admin":
		return d.Path("pki", service) // pki.Init makes these
	}
	return d.Path("identity", service)
}

// Node is the directory of what belongs to one node.
func (d Dir) Node(node string, elem ...string) string {
	return d.Path(append([]string{"nodes", node}, elem...)...)
}

// Pins is the directory in which the instance's namespaces are pinned.
func (d Dir) Pins() string { return d.Path("ns") }

// NetNS opens a network namespace: underlay, outside, svc-<service> or node-<n>.
func (d Dir) NetNS(name string) string { return filepath.Join(d.Pins(), name+".net") }

// MountNS opens the mount namespace of a node.
func (d Dir) MountNS(node string) string { return filepath.Join(d.Pins(), node+".mnt") }

// NodeName is the name of the n-th node, from 1.
func NodeName(n int) string { return "node-" + strconv.Itoa(n) }

// ServiceNS is the name of a service's namespace.
func ServiceNS(service string) string { return "svc-" + service }

// Marker is what makes a directory a state directory, and what its instance was asked to be.
type Marker struct {
	// Podwire says what the file is, for people.
	Podwire string `json:"podwire"`
	ID      string `json:"id"`
	// Options are those of `up`, as JSON; empty before they were decided.
	Options json.RawMessage `json:"options,omitempty"`
}

// ReadMarker is the marker of the directory; ok is false if it has none. A marker that cannot be read is Invalid.
func (d Dir) ReadMarker() (m Marker, ok bool, err error) {
	text, err := os.ReadFile(d.Path(MarkerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, errs.WrapAs(errs.Internal, err, "state directory")
	}
	if err := json.Unmarshal(text, &m); err != nil || m.ID == "" {
		return m, false, errs.New(errs.Invalid, "state directory %s: %s is not one that podwire wrote: %v", d, MarkerFile, err)
	}
	return m, true, nil
}

// WriteMarker makes the directory a state directory.
func (d Dir) WriteMarker(options json.RawMessage) error {
	text, err := json.MarshalIndent(Marker{Podwire: "state of `podwire up`; `podwire down` removes it", ID: d.ID(), Options: options}, "", "  ")
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "state directory")
	}
	return WriteFile(d.Path(MarkerFile), append(text, '\n'), 0o644)
}

// Empty says whether the directory holds nothing, or does not exist.
func (d Dir) Empty() (bool, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, errs.WrapAs(errs.Invalid, err, "state directory")
	}
	return len(entries) == 0, nil
}

// WriteFile replaces a file in one step, and makes its directory.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errs.WrapAs(errs.Internal, err, "write %s", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "write %s", path)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return errs.WrapAs(errs.Internal, err, "write %s", path)
}
