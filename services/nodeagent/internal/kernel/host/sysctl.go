package host

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/sysctl"
)

const (
	forward4 = "net/ipv4/ip_forward"
	forward6 = "net/ipv6/conf/all/forwarding"
)

func acceptRA(link string) string { return "net/ipv6/conf/" + link + "/accept_ra" }

// facts are what the wanted values depend on.
type facts struct {
	// routers are links with accept_ra 1 on which the host would stop to listen to its router: the kernel ignores
	// advertisements, and forgets learned routers, where forwarding is on and accept_ra is not 2.
	routers []string
	// recorded are the values found before the first change.
	recorded map[string]string
}

// setting is a sysctl and its wanted value.
type setting struct{ name, value string }

// wanted lists the sysctls, in the order in which they are written: accept_ra before forwarding, which would purge the
// learned default route at once.
func wanted(f facts) []setting {
	var list []setting
	for _, link := range f.routers {
		list = append(list, setting{acceptRA(link), "2"})
	}
	return append(list, setting{forward4, "1"}, setting{forward6, "1"})
}

// routers returns the links for facts: those by which a router was learned, and the underlay's, whose router may not have
// spoken yet. A link that was set to 2 earlier stays.
func (h *Host) routers(recorded map[string]string) ([]string, error) {
	indexes, err := h.conn.LearnedRouters()
	if err != nil {
		return nil, err
	}
	candidates := map[string]bool{}
	for _, index := range indexes {
		l, found, err := h.conn.LinkByIndex(index)
		if err != nil {
			return nil, err
		}
		candidates[l.Name] = found
	}
	forwarding, _, err := sysctl.Get("net/ipv6/conf/" + h.cfg.Underlay + "/forwarding")
	if err != nil {
		return nil, err
	}
	if forwarding == "0" {
		candidates[h.cfg.Underlay] = true
	}
	links, err := h.conn.Links()
	if err != nil {
		return nil, err
	}
	var routers []string
	for _, l := range links {
		value, exists, err := sysctl.Get(acceptRA(l.Name))
		if err != nil {
			return nil, err
		}
		_, ours := recorded[acceptRA(l.Name)]
		// 0: another program (as systemd-networkd) listens to routers itself.
		if exists && (ours || candidates[l.Name] && value == "1") {
			routers = append(routers, l.Name)
		}
	}
	return routers, nil
}

func (h *Host) facts() (facts, record, error) {
	r, err := readRecord(h.cfg.Record)
	if err != nil {
		return facts{}, r, err
	}
	f := facts{recorded: r.before()}
	f.routers, err = h.routers(f.recorded)
	return f, r, err
}

func (h *Host) applySysctls() (int, error) {
	f, r, err := h.facts()
	if err != nil {
		return 0, err
	}
	var change []setting
	for _, s := range wanted(f) {
		actual, exists, err := sysctl.Get(s.name)
		if err != nil {
			return 0, err
		}
		if !exists || actual == s.value {
			continue
		}
		change = append(change, s)
		if err := h.remember(&r, s.name, actual); err != nil {
			return 0, err
		}
	}
	if len(change) == 0 {
		return 0, nil
	}
	if err := r.write(h.cfg.Record); err != nil {
		return 0, err
	}
	for i, s := range change {
		if err := sysctl.Set(s.name, s.value); err != nil {
			return i, err
		}
	}
	return len(change), nil
}

// remember records the former value of a setting, and of those that the kernel changes with it: forwarding of all sets
// forwarding of each link, and for IPv4 accept_redirects of all to the contrary.
func (h *Host) remember(r *record, name, value string) error {
	r.add(name, value)
	var with []string
	switch name {
	case forward4:
		with = append(with, "net/ipv4/conf/all/accept_redirects")
	case forward6:
	default:
		return nil
	}
	links, err := h.conn.Links()
	if err != nil {
		return err
	}
	family := name[:len("net/ipv4")]
	with = append(with, family+"/conf/default/forwarding")
	for _, l := range links {
		with = append(with, family+"/conf/"+l.Name+"/forwarding")
	}
	for _, w := range with {
		value, exists, err := sysctl.Get(w)
		if err != nil {
			return err
		}
		if exists {
			r.add(w, value)
		}
	}
	return nil
}

func (h *Host) checkSysctls() ([]State, error) {
	f, _, err := h.facts()
	if err != nil {
		return nil, err
	}
	var states []State
	for _, s := range wanted(f) {
		actual, exists, err := sysctl.Get(s.name)
		if err != nil {
			return nil, err
		}
		state := State{Name: s.name, Wanted: s.value, Actual: actual, Before: f.recorded[s.name]}
		if !exists {
			state.Actual, state.Advice = "absent", "this kernel has no such setting; pods of that address family cannot work"
		}
		states = append(states, state)
	}
	return states, nil
}

// restoreSysctls writes the recorded values in the order in which they were recorded: each setting before those that the
// kernel changed with it, since it changes them again.
func (h *Host) restoreSysctls() error {
	r, err := readRecord(h.cfg.Record)
	if err != nil {
		return err
	}
	for _, s := range r.Sysctls {
		if _, err := sysctl.Ensure(s.Name, s.Before); err != nil {
			return err
		}
	}
	if err := os.Remove(h.cfg.Record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.WrapAs(errs.Internal, err, "remove the record")
	}
	return nil
}

// record is the file of former values.
type record struct {
	Sysctls []formerValue `json:"sysctls"`
}

type formerValue struct {
	Name   string `json:"name"`
	Before string `json:"before"`
}

// add keeps the first value of each name: later ones are our own doing.
func (r *record) add(name, before string) {
	for _, s := range r.Sysctls {
		if s.Name == name {
			return
		}
	}
	r.Sysctls = append(r.Sysctls, formerValue{name, before})
}

func (r record) before() map[string]string {
	m := map[string]string{}
	for _, s := range r.Sysctls {
		m[s.Name] = s.Before
	}
	return m
}

func readRecord(path string) (record, error) {
	var r record
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, errs.WrapAs(errs.Internal, err, "read the record of former values")
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, errs.WrapAs(errs.Invalid, err, "the record of former values %s is damaged; restore the settings in it by hand, "+
			"then remove it", path)
	}
	return r, nil
}

// write replaces the file, and returns when it will survive a crash.
func (r record) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "encode the record of former values")
	}
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "write the record of former values")
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncDirectory(filepath.Dir(path))
	}
	return errs.WrapAs(errs.Internal, err, "write the record of former values")
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
