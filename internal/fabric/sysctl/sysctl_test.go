package sysctl_test

import (
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/sysctl"
	"podwire.dev/internal/testnet"
)

func TestEnsureWritesOnlyWhatDiffers(t *testing.T) {
	s := testnet.New(t).AddNS("node")
	const name = "net/ipv4/ip_forward"
	s.SetSysctl(name, "0") // a new namespace takes it from the host, where a container engine may have set it
	s.Must(func() error {
		for i, want := range []int{1, 0} {
			if n, err := sysctl.Ensure(name, "1"); n != want || err != nil {
				t.Errorf("attempt %d: %d writes, %v", i, n, err)
			}
		}
		if v, exists, err := sysctl.Get(name); v != "1" || !exists || err != nil {
			t.Errorf("read %q, %v, %v", v, exists, err)
		}
		return nil
	})
	if v := s.Sysctl(name); v != "1" {
		t.Errorf("the namespace has %q", v)
	}
}

func TestWhatDoesNotExist(t *testing.T) {
	const name = "net/ipv4/conf/no-such-link/forwarding"
	if v, exists, err := sysctl.Get(name); v != "" || exists || err != nil {
		t.Errorf("read %q, %v, %v", v, exists, err)
	}
	if n, err := sysctl.Ensure(name, "1"); n != 0 || err != nil {
		t.Errorf("ensured with %d writes, %v", n, err)
	}
	if err := sysctl.Set(name, "1"); !errs.Is(err, errs.NotFound) {
		t.Errorf("set: %v", err)
	}
}

func TestRefusedValue(t *testing.T) {
	s := testnet.New(t).AddNS("node")
	if err := s.Do(func() error { return sysctl.Set("net/ipv4/ip_forward", "many") }); err == nil {
		t.Error("a value that is no number was taken")
	}
}
