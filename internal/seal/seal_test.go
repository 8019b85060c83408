package seal_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/seal"
)

func keyring(t testing.TB, keys ...seal.Key) *seal.Keyring {
	t.Helper()
	r, err := seal.NewKeyring(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSealAndOpen(t *testing.T) {
	old, fresh := seal.NewKey(), seal.NewKey()
	id, sealed := keyring(t, old).Seal([]byte("hunter2"), "here")
	if id != old.ID() || bytes.Contains(sealed, []byte("hunter2")) {
		t.Fatalf("sealed with %s: %q", id, sealed)
	}
	rotated := keyring(t, fresh, old)
	if plain, err := rotated.Open(id, sealed, "here"); err != nil || string(plain) != "hunter2" {
		t.Errorf("an old value opens as %q, %v", plain, err)
	}
	if id, _ := rotated.Seal([]byte("x"), "here"); id != fresh.ID() {
		t.Errorf("the key %s seals, want the first", id)
	}
	if _, again := keyring(t, old).Seal([]byte("hunter2"), "here"); bytes.Equal(again, sealed) {
		t.Error("the same value was sealed to the same bytes: the nonce is not random")
	}
	if _, err := rotated.Open(id, sealed, "elsewhere"); !errors.Is(err, seal.ErrDamaged) {
		t.Errorf("a moved value: %v", err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := rotated.Open(id, bad, "here"); !errors.Is(err, seal.ErrDamaged) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	for _, short := range [][]byte{nil, sealed[:11], sealed[:27]} {
		if _, err := rotated.Open(id, short, "here"); !errors.Is(err, seal.ErrDamaged) {
			t.Errorf("%d bytes: %v", len(short), err)
		}
	}
	_, err := keyring(t, fresh).Open(id, sealed, "here")
	if !errors.Is(err, seal.ErrUnknownKey) || !strings.Contains(err.Error(), old.ID()) || !strings.Contains(err.Error(), fresh.ID()) {
		t.Errorf("without the key: %v", err)
	}
}

func TestKeysAreNeverPrinted(t *testing.T) {
	k := seal.NewKey()
	material := strings.Fields(k.Line())[2]
	raw, err := base64.StdEncoding.DecodeString(material)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	r := keyring(t, k)
	for _, log := range []*slog.Logger{slog.New(slog.NewJSONHandler(&logged, nil)), slog.New(slog.NewTextHandler(&logged, nil))} {
		log.Info("x", "key", k, "pointer", &k, "ring", r)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		fmt.Fprintf(&logged, verb+" "+verb+" "+verb+"\n", k, []seal.Key{k}, r)
	}
	for _, form := range []string{material, string(raw), fmt.Sprintf("%x", raw[:4]), strings.Trim(fmt.Sprint(raw[:4]), "[]"), fmt.Sprintf("0x%x, 0x%x", raw[0], raw[1])} {
		if bytes.Contains(logged.Bytes(), []byte(form)) {
			t.Errorf("a key was printed:\n%s", logged.String())
		}
	}
}

func TestParseKeys(t *testing.T) {
	a, b := seal.NewKey(), seal.NewKey()
	keys, err := seal.ParseKeys("# a comment\r\n\n" + a.Line() + "  " + strings.TrimSpace(b.Line()))
	if err != nil || len(keys) != 2 || keys[0] != a || keys[1] != b {
		t.Fatalf("got %v, %v", keys, err)
	}
	line := strings.Fields(a.Line())
	zeros := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for text, want := range map[string]string{
		"":                                   "no key",
		"# nothing\n":                        "no key",
		"v2 a " + line[2]:                    "line 1: must begin with v1",
		a.Line() + "v1 a\n":                  "line 2: must be v1",
		"v1 a b " + line[2]:                  "line 1: must be v1",
		"v1 A_ " + line[2]:                   "the key's id",
		"v1 a !":                             "32 bytes",
		"v1 a " + line[2][:40]:               "32 bytes",
		"v1 a " + zeros:                      "all zeros",
		a.Line() + a.Line():                  "two keys have the id",
		a.Line() + "v1 other " + line[2]:     "are the same",
		"v1 a " + line[2] + line[2] + "\n\n": "32 bytes",
	} {
		_, err := seal.ParseKeys(text)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), line[2][:12]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add(seal.NewKey().Line() + seal.NewKey().Line())
	f.Add("v1 a AAAA\n")
	f.Add("# x\n\r\nv1\t")
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := seal.ParseKeys(text)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("a bad file is %v", errs.KindOf(err))
			}
			return
		}
		var again strings.Builder
		for _, k := range keys {
			again.WriteString(k.Line())
		}
		same, err := seal.ParseKeys(again.String())
		if err != nil || len(same) != len(keys) {
			t.Fatalf("written again: %v, %v", same, err)
		}
		for i := range keys {
			if same[i] != keys[i] {
				t.Fatalf("key %d changed", i)
			}
		}
	})
}
