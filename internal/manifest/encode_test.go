package manifest_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// TestEncode prints in.yaml of each archive and compares it with want.yaml and
// want.json.
func TestEncode(t *testing.T) {
	for _, name := range files(t, "testdata/encode/*.txtar") {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			objects := parse(t, string(archive.Files[0].Data))
			for i, format := range []manifest.Format{manifest.YAML, manifest.JSON} {
				want := &archive.Files[i+1]
				var got []byte
				if len(objects) == 1 {
					got, err = manifest.Encode(objects[0].Message, format)
				} else {
					var ms []manifest.Message
					for _, o := range objects {
						ms = append(ms, o.Message)
					}
					got, err = manifest.EncodeList(ms, "42", format)
				}
				if err != nil {
					t.Fatal(err)
				}
				if *update {
					want.Data = got
				}
				if string(got) != string(want.Data) {
					t.Errorf("%s: got\n%swant\n%s", want.Name, got, want.Data)
				}
			}
			if *update {
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestEncodeStatus(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("x", 3600))
	pod := &objectv1.Pod{
		ApiVersion: "v1", Kind: "Pod", Metadata: &objectv1.ObjectMeta{Name: "p", CreationTimestamp: timestamppb.New(at)},
		Status: &objectv1.PodStatus{ContainerStatuses: []*objectv1.ContainerStatus{{
			Name: "c", Started: proto.Bool(false),
			State: &objectv1.ContainerState{Terminated: &objectv1.ContainerStateTerminated{Reason: "Completed"}},
		}}},
	}
	got, err := manifest.Encode(pod, manifest.YAML)
	if err != nil {
		t.Fatal(err)
	}
	const want = `apiVersion: v1
kind: Pod
metadata:
  creationTimestamp: "2026-01-02T02:04:05Z"
  name: p
status:
  containerStatuses:
  - image: ""
    imageID: ""
    name: c
    ready: false
    restartCount: 0
    started: false
    state:
      terminated:
        exitCode: 0
        reason: Completed
`
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestEncodeRefuses(t *testing.T) {
	nan, err := structpb.NewStruct(map[string]any{"x": []any{1}})
	if err != nil {
		t.Fatal(err)
	}
	nan.Fields["x"].GetListValue().Values[0] = structpb.NewNumberValue(inf())
	for want, m := range map[string]manifest.Message{
		"manifest: encode Pod a/b: spec: affinity: x: [0]: +Inf has no form in JSON": &objectv1.Pod{
			Kind: "Pod", Metadata: &objectv1.ObjectMeta{Namespace: "a", Name: "b"}, Spec: &objectv1.PodSpec{Affinity: nan},
		},
	} {
		for _, format := range []manifest.Format{manifest.YAML, manifest.JSON} {
			if _, err := manifest.Encode(m, format); err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		}
	}
	if _, err := manifest.Encode(&objectv1.Pod{}, "toml"); err == nil || !strings.Contains(err.Error(), "use yaml or json") {
		t.Errorf("got %v", err)
	}
}

func inf() float64 {
	var zero float64
	return 1 / zero
}

func TestEncodeMessage(t *testing.T) {
	got, err := manifest.EncodeMessage(durationpb.New(1500*time.Millisecond), manifest.JSON)
	if err != nil || string(got) != "\"1.5s\"\n" {
		t.Errorf("got %q, %v", got, err)
	}
	got, err = manifest.EncodeMessage(&objectv1.LabelSelector{MatchLabels: map[string]string{"b": "2", "a": "yes"}}, manifest.YAML)
	if err != nil || string(got) != "matchLabels:\n  a: \"yes\"\n  b: \"2\"\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestEmptyList(t *testing.T) {
	text, err := manifest.EncodeList(nil, "", manifest.JSON)
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Kind  string
		Items []any
	}
	if err := json.Unmarshal(text, &list); err != nil || list.Kind != "List" || list.Items == nil {
		t.Errorf("got %s, %v", text, err)
	}
	if got := parse(t, string(text)); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}
